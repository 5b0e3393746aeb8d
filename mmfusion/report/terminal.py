"""Metrics as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from mmfusion.console import console
from mmfusion.runs.words import age, printable, sparkline
from mmfusion.sweep.space import short

if TYPE_CHECKING:
    from mmfusion.sweep.result import Result

COLUMNS = 8  # checkpoints that stand beside one another

Row = Mapping[str, Any]


def show(table: Table, columns: int = 1) -> None:
    """Print a table, as wide as the terminal; wide enough to be read where there is none."""
    console(max(140, 60 + 20 * columns)).print(table)


def metrics(rows: Sequence[Row]) -> Table:
    """One checkpoint's metrics."""
    table = _table("task", "metric", "value", "95% interval", "n", "chance", "baselines")
    for row in rows:
        beside = ", ".join(f"{name} {value:.3g}" for name, value in row["baselines"].items())
        numbers = f"{row['value']:.3f}", _interval(row["ci95"]), str(row["n"]), f"{row['chance']:.3f}"
        table.add_row(row["task"], row["metric"], *numbers, beside)
    return table


def compared(rows: Sequence[Row]) -> Table:
    """Several checkpoints' metrics: value and interval, below them the difference to the first and its interval."""
    names, by_metric = _by_metric(rows)
    table = _table("task", "metric", *names, "chance")
    for (task, metric), of_it in by_metric.items():
        cells = [_cell(of_it.get(name)) for name in names]
        table.add_row(task, metric, *cells, f"{next(iter(of_it.values()))['chance']:.3f}")
    return table


def along(rows: Sequence[Row]) -> Table:
    """One run's metrics by step; of many steps some, evenly apart, with a small curve of all."""
    names, by_metric = _by_metric(rows)
    picked = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, COLUMNS).round().astype(int))]
    table = _table("task", "metric", "curve", *picked, "chance")
    for (task, metric), of_it in by_metric.items():
        cells = [
            f"{of_it[name]['value']:.3f}\n{_interval(of_it[name]['ci95'])}" if name in of_it else "" for name in picked
        ]
        curve = sparkline([of_it[name]["value"] for name in names if name in of_it])
        table.add_row(task, metric, curve, *cells, f"{next(iter(of_it.values()))['chance']:.3f}")
    return table


def tried(found: Result) -> Table:
    """A sweep's trials, the best first."""
    headings = ["\n".join(filter(None, (key.rpartition(".")[0], key.rpartition(".")[2]))) for key in found.sweep.space]
    table = _table("trial", "state", found.sweep.metric, "sd", "n", *headings, "steps", "time", "what happened")
    for one in found.ranked:
        came = "" if one.value is None else f"{one.value:.4g}", "" if one.sd is None else f"{one.sd:.2g}"
        values = [short(value) for value in one.values.values()]
        said = printable(one.message if one.state == "failed" else "")
        table.add_row(
            str(one.number), one.state, *came, str(one.n or ""), *values, str(one.step or ""), age(one.seconds), said
        )
    return table


def importance(found: Result) -> Table:
    """Which keys mattered, with a bar each."""
    table = _table("key", "share of the variance", "")
    table.columns[2].justify = "left"
    for key, share in found.importance.items():
        table.add_row(key, f"{share:.2f}", "█" * round(24 * share))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        words = heading in ("task", "metric", "baselines", "curve", "state", "what happened", "key")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    return table


def _by_metric(rows: Sequence[Row]) -> tuple[list[str], dict[tuple[str, str], dict[str, Row]]]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["task"], row["metric"]), {})[row["checkpoint"]] = row
    return list(dict.fromkeys(row["checkpoint"] for row in rows)), found


def _cell(row: Row | None) -> str:
    if row is None:
        return "not asked"
    lines = [f"{row['value']:.3f}", _interval(row["ci95"])]
    if gap := row.get("difference"):
        lines += [f"{gap['value']:+.3f}", _interval(gap["ci95"], signed=True)]
    elif "unpaired" in row:
        lines.append("unpaired")
    return "\n".join(lines)


def _interval(ci95: Sequence[float] | None, signed: bool = False) -> str:
    how = "+.3f" if signed else ".3f"
    return "no interval" if ci95 is None else f"{ci95[0]:{how}} to {ci95[1]:{how}}"
