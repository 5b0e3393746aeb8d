"""evaluation.html: several checkpoints, or one run along its training, on a page that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mmfusion import runs
from mmfusion.evaluation.measure import Row
from mmfusion.report import svg
from mmfusion.report.html import environment


def write_compared(path: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Rows of `mmfusion.evaluation.comparison`: every metric of all checkpoints, with the differences to the first."""
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    _write(path, f"{len(names)} checkpoints", rows, facts, {})


def write_along(path: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """The same of one run, with a curve of each metric over its steps (`checkpoint` is `step N`)."""
    curves = {
        task: [_curve(metric, of_it) for metric, of_it in metrics.items()] for task, metrics in _grouped(rows).items()
    }
    _write(path, facts["Run"], rows, facts, curves)


def _write(
    path: Path, title: str, rows: Sequence[Row], facts: Mapping[str, str], curves: Mapping[str, Sequence[Markup]]
) -> None:
    template = environment().get_template("evaluation.html.j2")
    runs.write(path, template.render(title=title, facts=facts, tasks=_grouped(rows), curves=curves))


def _grouped(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """By task and metric, in their order."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["task"], {}).setdefault(row["metric"], []).append(row)
    return found


def _curve(metric: str, rows: Sequence[Row]) -> Markup:
    steps = np.array([int(row["checkpoint"].removeprefix("step ")) for row in rows], dtype=float)
    lines = [
        svg.Line("value", steps, np.array([row["value"] for row in rows]), "s1"),
        svg.Line("chance", steps, np.array([row["chance"] for row in rows]), "s3"),
    ]
    if beside := rows[0]["baselines"]:
        name, value = next(iter(beside.items()))
        lines.append(svg.Line(name, steps, np.full(len(rows), value), "s2"))
    return svg.curves(lines, title=metric, x_name="step")
