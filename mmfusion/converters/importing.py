"""What is imported late, because few runs want it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

# bitsandbytes, which peft looks for, tells of kernels that a CPU does not have; torch, of what torchao is to change.
TALKING = ("bitsandbytes", "torch.utils._pytree")


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is said that is of no use to who trains a model."""
    levels = {log: log.level for log in map(logging.getLogger, TALKING)}
    for log in levels:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)


def quietly(name: str) -> Any:
    """A module, and nothing said by it."""
    with quiet():
        return import_module(name)
