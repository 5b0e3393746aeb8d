"""compare.html: runs beside one another on one page that opens without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mmfusion import runs
from mmfusion.report import svg
from mmfusion.report.curves import binned
from mmfusion.report.html import bounds, environment, is_rank, value
from mmfusion.runs import energy, words
from mmfusion.runs.comparison import Comparison, unpaired
from mmfusion.runs.listing import Measured, Run

PLOTTED = ("val/loss", "train/loss", "val/", "train/lr", "train/", "health/grad", "health/rank/", "speed/samples")
LINEAR = ("train/lr", "health/rank/", "speed/")


@dataclass(frozen=True)
class Cell:
    """A run's value of a metric, in words and drawn."""

    letter: str
    value: str
    bounds: str
    drawn: Markup


def write(path: Path, found: Comparison) -> None:
    """Write the page, whole or not at all. Raises RunError for a log that is none."""
    page = environment().get_template("compare.html.j2").render(
        found=found,
        facts={letter: _facts(run) for letter, run in found.runs.items()},
        rows={name: _cells(found.runs, row) for name, row in found.metrics.items()},
        differences={key: dict(zip(found.runs, row, strict=True)) for key, row in found.differences.items()},
        plots=curves(found.runs),
        unpaired=unpaired(list(found.runs.values())),
    )  # fmt: skip
    runs.write(path, page)


def _facts(run: Run) -> dict[str, str]:
    return {
        "State": f"{run.status.state}, {words.steps(run)} steps",
        "Stage": run.status.stage + (f", from {', '.join(run.parents)}" if run.parents else ""),
        "Time": f"{words.took(run)}, {words.step_time(run)} a step",
        "Validation loss": words.number(run.value("val/loss")),
        "Commit": words.commit(run),
        "Data": words.data(run),
        "Machine": words.machine(run),
        "Energy": energy.line(run.energy),
        "Command": run.environment.command or "unknown",
    }


def _cells(letters: Iterable[str], row: Iterable[Measured | None]) -> list[Cell]:
    return [_cell(letter, measured) for letter, measured in zip(letters, row, strict=True) if measured]


def _cell(letter: str, row: Measured) -> Cell:
    drawn = Markup("")
    if row.chance is not None:
        log_to = 2 * row.chance if is_rank(row.metric) else None
        drawn = svg.interval(row.value, row.ci95, row.chance, {}, log_to=log_to)
    return Cell(letter, value(row.value, row.metric), bounds(row.ci95, row.metric), drawn)


def curves(found: Mapping[str, Run]) -> list[Markup]:
    """A plot for each of PLOTTED, a line a run; what is logged for each source apart is left out."""
    logged = dict.fromkeys(name for run in found.values() for name in run.curves)
    whole = [name for name in logged if name.rpartition("/")[0] not in logged]
    plots = []
    for name in dict.fromkeys(name for wanted in PLOTTED for name in whole if name.startswith(wanted)):
        lines = []
        for index, (letter, run) in enumerate(found.items()):
            if name in run.curves:
                steps, values = map(np.array, run.curves[name])
                lines.append(svg.Line(letter, *binned(steps, values), f"s{index + 1}"))
        plots.append(svg.curves(lines, title=name, x_name="step", log=not name.startswith(LINEAR), named=True))
    return [plot for plot in plots if plot]
