"""What is imported late, because few runs want it."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any


def quietly(name: str) -> Any:
    """A module, without what bitsandbytes, which peft looks for, says of kernels that a CPU does not have."""
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return import_module(name)
    finally:
        log.setLevel(level)
