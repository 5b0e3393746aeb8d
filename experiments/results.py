"""What the experiments share: rows that say whether a promise is met, and the machine they were measured on."""

from __future__ import annotations

import functools
import json
import operator
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfusion import runs

COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


@functools.cache
def commit() -> str | None:
    """The commit that runs: asked once, before a results.json that is written changes the tree."""
    return runs.commit()


def row(
    id: str,
    what: str,
    value: float,
    unit: str,
    *,
    n: int,
    must: str | None = None,
    judged: float | None = None,
    ci95: Sequence[float] | None = None,
    beside: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One row. `must` is a comparison such as ">= 0.3" of `value`, or of `judged` where that is given."""
    met = None
    if must is not None:
        sign, bound = must.split()
        met = bool(COMPARE[sign](value if judged is None else judged, float(bound)))
    return {
        "id": id, "what": what, "value": value, "unit": unit, "n": n, "ci95": ci95, "must": must, "met": met,
        "beside": dict(beside or {}), "commit": commit(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def save(path: Path, rows: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write results.json and print the rows as a table."""
    environment = {k: v for k, v in runs.environment().items() if k in ("processor", "cores", "python", "packages")}
    runs.write(
        path, json.dumps({"command": command, "machine": environment, "rows": rows}, indent=1, ensure_ascii=False)
    )
    for one in rows:
        verdict = {True: "met", False: "NOT MET", None: ""}[one["met"]]
        interval = "" if one["ci95"] is None else f" [{one['ci95'][0]:.4g}, {one['ci95'][1]:.4g}]"
        value = f"{one['value']:.4g}{interval} {one['unit']}"
        print(f"{one['id']:<30} {value:<34} {one['must'] or '':<12} {verdict:<8} {one['what']}")


def matrix_gflops(size: int = 2048, repeats: int = 7) -> float:
    """What this machine's float32 matrix product reaches now, all cores: the yardstick beside every time."""
    import torch

    a, product = torch.randn(size, size), torch.empty(size, size)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, a, out=product)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds) / 1e9
