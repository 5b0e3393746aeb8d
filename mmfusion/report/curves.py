"""What a run logged, as plots in groups: losses, losses by source, health, speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mmfusion import runs
from mmfusion.report import svg

BINS = 100  # of a noisy training curve
STYLES = 6  # lines that one plot can tell apart
TITLES = {
    "loss": "total loss",
    "lr": "learning rate",
    "health/grad_norm": "gradient norm before clipping",
    "health/rank": "effective rank of embeddings",
    "health/padding": "share of padding",
    "speed/samples_per_s": "samples a second",
    "speed/peak_share": "share of the matrix peak",
    "speed": "seconds of a step",
}

Points = tuple[np.ndarray, np.ndarray]


def read_history(path: Path) -> dict[str, Points]:
    """Each numeric column of metrics.csv as (step, value), without its empty cells; nothing if there is no file."""
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in runs.curves(path).items()}


def binned(steps: np.ndarray, values: np.ndarray) -> Points:
    """Means over equal stretches of the run, where there are more points than a plot can show."""
    if len(steps) <= 2 * BINS:
        return steps, values
    groups = np.array_split(np.arange(len(steps)), BINS)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def plots(history: Path) -> dict[str, list[Markup]]:
    """The plots of each group that metrics.csv has something for, the total loss first."""
    columns = read_history(history)
    found = {"Losses": losses(columns), "Validation losses by source": by_source(columns),
             "Health": health(columns), "Speed": speed(columns)}  # fmt: skip
    return {group: shown for group, made in found.items() if (shown := [plot for plot in made if plot])}


def losses(columns: Mapping[str, Points]) -> list[Markup]:
    names = {name.partition("/")[2] for name in columns if name.startswith(("train/", "val/"))}
    made = []
    for name in sorted(names - of_sources(names), key=lambda n: (n != "loss", n == "lr", n)):
        lines = []
        if (kept := columns.get(f"train/{name}")) is not None:
            lines.append(svg.Line("training", *binned(*kept), "s1"))
        if (kept := columns.get(f"val/{name}")) is not None:
            lines.append(svg.Line("validation", *kept, "s2"))
        made.append(svg.curves(lines, title=TITLES.get(name, name), x_name="step", log=name != "lr"))
    return made


def of_sources(names: set[str]) -> set[str]:
    """The names that are a loss and one source: `captioning/tux-stamps` beside `captioning`."""
    return {name for name in names if name.rpartition("/")[0] in names}


def by_source(columns: Mapping[str, Points]) -> list[Markup]:
    names = {name.removeprefix("val/") for name in columns if name.startswith("val/")}
    sources = Counter(name.rpartition("/")[0] for name in of_sources(names))
    return [_together(columns, f"val/{parent}/", parent, log=True) for parent in sorted(sources) if sources[parent] > 1]


def health(columns: Mapping[str, Points]) -> list[Markup]:
    return [
        _alone(columns, "health/grad_norm"),
        _together(columns, "health/rank/", "health/rank"),
        _together(columns, "health/padding/", "health/padding"),
    ]


def speed(columns: Mapping[str, Points]) -> list[Markup]:
    return [
        _alone(columns, "speed/samples_per_s"),
        _alone(columns, "speed/peak_share"),
        _together(columns, "speed/", "speed", only=lambda name: name.endswith("_s") and "_per_" not in name),
    ]


def _alone(columns: Mapping[str, Points], name: str) -> Markup:
    lines = [svg.Line("", *binned(*columns[name]), "s1")] if name in columns else []
    return svg.curves(lines, title=TITLES.get(name, name), x_name="step")


def _together(
    columns: Mapping[str, Points],
    prefix: str,
    title: str,
    log: bool = False,
    only: Callable[[str], bool] = lambda name: True,
) -> Markup:
    """All quantities below a prefix in one plot, those that count most where there are more than it can tell apart."""
    members = [name for name in columns if name.startswith(prefix) and only(name)]
    members = sorted(members, key=lambda name: -float(np.abs(columns[name][1]).mean()))[:STYLES]
    lines = [
        svg.Line(name.removeprefix(prefix).removesuffix("_s"), *binned(*columns[name]), f"s{i + 1}")
        for i, name in enumerate(sorted(members))
    ]
    return svg.curves(lines, title=TITLES.get(title, title), x_name="step", log=log)
