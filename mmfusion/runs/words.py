"""How runs are told in short: durations, sizes, commits, curves, numbers."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

from mmfusion.runs.listing import Measured, Run

BLOCKS = "▁▂▃▄▅▆▇█"


def age(seconds: float) -> str:
    """A duration in its largest unit: 45 s, 12 min, 3.4 h, 2.1 d."""
    for size, unit in ((86400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def began(run: Run) -> str:
    return "?" if run.began is None else f"{age(max(0.0, time.time() - run.began))} ago"


def took(run: Run) -> str:
    return age(run.status.seconds) if run.status.time else "?"


def steps(run: Run) -> str:
    return f"{run.step}/{run.planned if run.planned else '?'}"


def step_time(run: Run) -> str:
    return "?" if run.status.step_s is None else f"{run.status.step_s:.3g} s"


def commit(run: Run) -> str:
    """The first characters of the commit, `+` where the work tree had changes."""
    digest, _, changes = (run.environment.commit or "?").partition("+")
    return digest[:8] + ("+" if changes else "")


def parent(checkpoint: str) -> str:
    """The last folder of the run that a checkpoint is of."""
    return checkpoint.rstrip("/").removesuffix("/checkpoint").rpartition("/")[2]


def data(run: Run) -> str:
    return (run.data or "?")[:8]


def machine(run: Run) -> str:
    there = run.environment
    return f"{there.processor or '?'}, {there.cores or '?'} cores"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def interval(row: Measured) -> str:
    return "" if row.ci95 is None else f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}"


def size(count: int) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"


def printable(text: str) -> str:
    """Text of a file on a terminal: what would steer it is left out."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The curve in blocks from its lowest to its highest value; means where there are more than `width`."""
    if len(values) > width:
        ends = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    finite = [value for value in values if math.isfinite(value)]
    low, span = min(finite, default=0.0), (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
    return "".join(BLOCKS[min(7, int(8 * (value - low) / span))] if math.isfinite(value) else " " for value in values)
