"""A command whose end comes with that of who started it: `bound.py LINE COMMAND …` runs the command, and watches.

`LINE` is a file descriptor: the read end of a pipe that nobody writes to. It closes when whoever holds the other end is
gone, however that came; then the command hears SIGTERM, once, and ends in order. (Linux can tell a process of its
parent's death itself, but does so again for each thread that the parent had, and a second SIGTERM means "at once".)

Nothing but the standard library, single-threaded: it stands before every start.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1
LOOK_S = 0.05


def main() -> None:
    """Run the command and end as it does, by the same status or the same signal."""
    line, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(line, False)
    if _is_closed(line, 0):
        sys.exit(143)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    pid = os.fork()
    if not pid:
        _become(command)
    watching = True
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _end_alike(os.waitstatus_to_exitcode(status))
        if watching and _is_closed(line, LOOK_S):
            watching = False
            told.append(signal.SIGTERM)
        elif not watching:
            select.select([], [], [], LOOK_S)
        while told:
            with suppress(ProcessLookupError):
                os.kill(pid, told.pop())


def _is_closed(line: int, seconds: float) -> bool:
    return bool(select.select([line], [], [], seconds)[0])


def _become(command: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":  # should this watcher be killed itself
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


def _end_alike(status: int) -> None:
    if status >= 0:
        sys.exit(status)
    signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -status)


if __name__ == "__main__":
    main()
