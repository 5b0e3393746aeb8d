"""A program in a real process that has imported already what this one has: the imports are most of a short run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch


class Forked:
    """`function(*arguments)` as a program in a process group of its own; the names are `subprocess.Popen`'s.

    What it writes goes to the files stdout and stderr in `folder`.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, folder: Path) -> None:
        self._written = [folder / name for name in ("stdout", "stderr")]
        context = multiprocessing.get_context("fork")
        if torch.cuda.is_initialized():  # does not outlive a fork
            context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_program, args=(function, arguments, self._written))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit status once it has ended, minus the signal if one ended it."""
        return self._process.exitcode

    def written(self) -> list[str]:
        """What stands in stdout and stderr by now."""
        return [path.read_text() if path.exists() else "" for path in self._written]

    def ended(self, timeout: float = 60) -> tuple[int, str, str]:
        """Wait for it: exit status, stdout, stderr."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {timeout} s: {self.written()}")
        out, error = self.written()
        return code, out, error


def _program(function: Callable[..., object], arguments: tuple[object, ...], written: list[Path]) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    for stream, path in zip((1, 2), written, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    sys.exit(function(*arguments))  # pyright: ignore[reportArgumentType]  (a status, or None)
