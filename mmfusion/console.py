"""Where tables for people are printed."""

from __future__ import annotations

import os
import sys

from rich.console import Console


def console(wide: int = 140) -> Console:
    """As wide as the terminal, or $COLUMNS; else, in a pipe, `wide` enough for whole rows. Names are no markup."""
    fixed = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else wide
    return Console(width=fixed, markup=False, highlight=False, emoji=False)
