"""A program whose end comes with its parent's: `bound.py PARENT COMMAND …` becomes the command.

Linux tells a process of its parent's death, however that came; the command hears it as SIGTERM, and ends in order.
Elsewhere the command is started all the same. Nothing but the standard library: it stands before every start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command, or end where the parent is gone already."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit(143)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
