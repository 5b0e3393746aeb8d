"""SIGTERM as an exception, so that what was begun is ended in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_sigterm(raising: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGTERM calls `raising` while this lasts; outside the main thread, where no signal comes, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raising)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
