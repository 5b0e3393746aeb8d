"""`mmfusion train` as a process of its own, which does not outlive this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmfusion.sweep import bound

TRAIN = (sys.executable, "-m", "mmfusion.cli.main", "train")
# What libraries ask how many threads they may have.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Child:
    """A command in a process group of its own; what it prints is added to `log`, or goes where ours goes.

    It hears SIGTERM when this process ends, also by kill -9.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path | None = None, given: Mapping[str, str] | None = None
    ) -> None:
        self._asked = False
        heard, self._line = os.pipe()  # our end closes with this process, whatever ends it
        wrapped = [sys.executable, "-I", "-S", bound.__file__, str(heard), *command]
        how: dict[str, Any] = {"env": {**os.environ, **(given or {})}, "pass_fds": [heard], "start_new_session": True}
        try:
            if log is None:
                self._process = subprocess.Popen(wrapped, **how)
            else:
                with log.open("ab") as file:
                    self._process = subprocess.Popen(wrapped, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **how)
        finally:
            os.close(heard)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self._line)

    def poll(self) -> int | None:
        """Its exit status once it has ended, minus the signal if one ended it."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end behind the step that it is in; once, as a second time would mean at once."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def kill(self) -> None:
        """End it, and what it has started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Its exit status; who is interrupted meanwhile stops it first, and kills it if interrupted again."""
        try:
            return self._process.wait()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Stop it and wait; kill it where this is interrupted."""
        self.stop()
        try:
            self._process.wait()
        except BaseException:
            self.kill()
            raise


def shared(cores: int, jobs: int, ranks: int, slot: int = 0, devices: int = 0) -> dict[str, str]:
    """The environment of one of `jobs` runs of `ranks` processes each: together they have no more threads than cores.

    Of several GPUs (`devices`, as torch counts those it may see) each run has its own, where there are enough.
    """
    threads = max(1, cores // (jobs * ranks))
    given = {name: str(min(threads, _number(os.environ.get(name)) or threads)) for name in THREADS}
    if jobs > 1 and devices >= jobs * ranks:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
        given["CUDA_VISIBLE_DEVICES"] = ",".join(seen[slot * ranks : (slot + 1) * ranks])
    return given


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
