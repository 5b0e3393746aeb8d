"""Which runs, in which order: filters, keys to sort by, metrics by name."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

from mmfusion.config import near
from mmfusion.runs.folder import RunError
from mmfusion.runs.listing import Run


def chosen(found: Sequence[Run], *, state: str | None, name: str | None, stage: str | None) -> list[Run]:
    """The runs of a state and a stage whose name, or folder, is `name` or matches it as a pattern (`quick*`)."""
    return [
        run
        for run in found
        if state in (None, run.status.state)
        and stage in (None, run.status.stage)
        and (name is None or any(fnmatch.fnmatch(text, name) for text in (run.name, str(run.folder))))
    ]


ORDERS: dict[str, Callable[[Run], Any]] = {
    "began": lambda run: -(run.began or 0.0),
    "name": lambda run: run.name,
    "state": lambda run: run.status.state,
    "stage": lambda run: run.status.stage,
    "steps": lambda run: -run.step,
    "took": lambda run: -run.status.seconds,
}


def ordered(found: Sequence[Run], key: str, *, reverse: bool = False) -> list[Run]:
    """By one of ORDERS (numbers from the largest) or by a metric, the best first; runs without it come last.

    Raises RunError for a key that is neither.
    """
    if key in ORDERS:
        return sorted(found, key=ORDERS[key], reverse=reverse)
    name = metric_named(found, key, ORDERS)
    sign = 1 if lower_is_better(name) else -1
    able = [run for run in found if (value := run.value(name)) is not None and math.isfinite(value)]
    return sorted(able, key=lambda run: sign * (run.value(name) or 0.0), reverse=reverse) + [
        run for run in found if run not in able
    ]


def lower_is_better(name: str) -> bool:
    return any(word in name.rpartition("/")[2].lower() for word in ("rank", "loss", "perplexity")) or name[:4] == "val/"


def metric_named(found: Sequence[Run], name: str, others: Sequence[str] | dict[str, Any] = ()) -> str:
    """The metric's full name `task/metric`; the task may be left out where one alone has it. Raises RunError."""
    known = list(dict.fromkeys(metric for run in found for metric in run.values))
    alike = [metric for metric in known if metric.partition("/")[2] == name]
    if name in known or len(alike) == 1:
        return name if name in known else alike[0]
    if alike:
        raise RunError(f"{name}: several tasks have it; say which: {', '.join(alike)}")
    there = [*others, *known]
    remedy = f"there are: {', '.join(there)}" if there else "these runs have none yet"
    raise RunError(f"{name}: no such metric{near(name, there)}; {remedy}")
