"""A run of several processes: how they agree on its folder, and what is said when one of them dies.

The first rank makes the folder, writes and prints; Lightning starts the others with the same command.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from mmfusion.config import ConfigError
from mmfusion.errors import UserError
from mmfusion.ranks import leave

RUN = "MMFUSION_RUN"  # the run's folder, in the environment of the processes that the first one starts
# What Lightning's launcher leaves there, which would make the next run in this process one of the others.
LEFT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DYING_S = 5.0
_LOST = re.compile(r"onnection (closed|reset|refused)|broken pipe|gloo|nccl", re.IGNORECASE)  # what a backend says then


class LostRank(UserError):
    """A process of the run has ended too early."""


def rank() -> int:
    """Which of a run's processes this is, as its environment says; 0 for one alone."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def folder_of_all() -> str | None:
    """The folder that the first rank chose. Raises ConfigError where another program started the ranks, each of which
    would choose one of its own."""
    if (told := os.environ.get(RUN)) is None and (rank() or int(os.environ.get("WORLD_SIZE") or 1) > 1):
        raise ConfigError(["paths.run: give the run's folder, on which ranks that were started alike must agree"])
    return told


@contextmanager
def leading(folder: Path) -> Iterator[None]:
    """Processes that are started meanwhile learn the run's folder; nothing of it stays in this one."""
    before = {name: os.environ.get(name) for name in (RUN, *LEFT)}
    os.environ[RUN] = str(folder)
    try:
        yield
    finally:
        leave()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def watching(fitter: pl.Trainer) -> Iterator[None]:
    """The end of the processes that a trainer starts: none outlives this. Raises LostRank where one of them died."""
    # Lightning's answer to SIGTERM is a broadcast, amid whatever else the ranks were telling each other.
    setattr(fitter._signal_connector, "_sigterm_notifier_fn", lambda *_: None)  # noqa: B010  (a method, to pyright)
    try:
        yield
    except BaseException as error:
        others = _taken_over(fitter)
        dead = _first_dead(others) if isinstance(error, RuntimeError) and _LOST.search(str(error)) else None
        for process in others:
            process.terminate()
        for process in others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(DYING_S)
            process.kill()
        if dead is not None:
            raise LostRank(dead) from error
        raise
    for process in _taken_over(fitter):
        process.wait()


def _taken_over(fitter: pl.Trainer) -> list[subprocess.Popen[Any]]:
    """The other ranks, of whose end Lightning, which would kill this process for it, hears no more."""
    started: list[subprocess.Popen[Any]] = getattr(fitter.strategy.launcher, "procs", [])
    others = started.copy()
    started.clear()
    return others


def _first_dead(others: Sequence[subprocess.Popen[Any]]) -> str | None:
    """The first that has ended by itself, or does so soon, in words."""
    for _ in range(int(DYING_S * 10)):
        for number, process in enumerate(others, start=1):
            if status := process.poll():
                how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                return f"rank {number} {how}"
        time.sleep(0.1 if others else 0)
    return None
