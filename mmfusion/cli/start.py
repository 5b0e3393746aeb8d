"""A short start, of a process that runs one verb and ends."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

for_one_verb = False  # set by `main`; a notebook that calls it has objects of its own, which may end


@contextmanager
def for_good() -> Iterator[None]:
    """Around the imports a verb begins with: what they make stays, so no search for dead objects goes through it.

    Neither while they are imported nor afterwards. The first time in a process only, and in one for
    one verb, where there is little else that could stay with them.
    """
    if not for_one_verb or not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else what the end does not find is told as leaked
        gc.enable()
