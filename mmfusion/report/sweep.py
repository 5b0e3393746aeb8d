"""sweep.html: what a sweep tried and what came of it, on one page that opens without a network.

The plots are drawn here: Optuna's would bring 4 MB of plotly.js into each page, run scripts, and know no dark mode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from mmfusion import runs
from mmfusion.report import svg
from mmfusion.report.html import environment
from mmfusion.runs.words import age
from mmfusion.sweep.space import Choice, Dimension, short

if TYPE_CHECKING:
    from mmfusion.sweep.result import Result, Tried

WIDTH, HEIGHT = 1080, 380  # of the parallel coordinates
SIDE, TOP, BOTTOM = 60, 46, 26
FEW = 9  # values that stand apart on an axis
SHADES = 5  # classes q1 (worst) to q5 (best) of the page


@dataclass(frozen=True)
class Scale:
    """An axis of one key or of the metric: its name, where a value stands on it (0 to 1), and labelled places."""

    name: str
    places: dict[int, float]
    labels: Sequence[tuple[float, str]]
    log: bool = False


def write(path: Path, found: Result, command: str) -> None:
    """Write the page, whole or not at all; `command` trains with the winner, empty where there is none."""
    states = [one.state for one in found.tried]
    facts = {
        "Space": f"{len(found.sweep.space)} keys, seed {found.sweep.seed}",
        "Trials": ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none",
        "Judged by": f"{found.sweep.metric}, {found.sweep.direction}d, on the validation split",
        "Repeats": f"{found.sweep.repeats}, by seed",
        "Pruner": found.sweep.pruner.kind,
        "Time of its runs": age(sum(one.seconds for one in found.tried)),
        "All runs have": " ".join((*found.sweep.overrides, *found.sweep.only_in_trials)) or "nothing of their own",
    }
    page = environment().get_template("sweep.html.j2").render(
        title=f"{found.name}: {len(found.tried)} trials",
        facts=facts,
        found=found,
        best=found.best,
        command=command,
        shades=_shades(found),
        parallel=parallel(found),
        course=course(found),
        slices=[slice_of(found, key) for key in found.sweep.space],
        short=short,
        age=age,
        done=states.count("done"),
    )  # fmt: skip
    runs.write(path, page)


def _shades(found: Result) -> dict[int, str]:
    """A class for each trial that has a value: q5 the best fifth of those done, q1 the worst, p for pruned ones."""
    done = [one for one in found.ranked if one.state == "done"]
    shades = {one.number: f"q{SHADES - rank * SHADES // len(done)}" for rank, one in enumerate(done)}
    return shades | {one.number: "p" for one in found.tried if one.state == "pruned"}


# ------------------------------------------------------------------------------------------------ parallel coordinates


def parallel(found: Result) -> Markup:
    """A line a trial over an axis for each key and one for the metric; the best drawn last, pruned ones dotted."""
    shown = [one for one in reversed(found.ranked) if one.value is not None]
    if len(shown) < 2:
        return Markup("")
    scales = [*(_scale(found, key, shown) for key in found.sweep.space), _metric_scale(found, shown)]
    xs = np.linspace(SIDE, WIDTH - SIDE, len(scales))
    shades = _shades(found)
    body = Markup("")
    for one in shown:
        points = [f"{x:.1f},{_height(scale.places[one.number]):.1f}" for x, scale in zip(xs, scales, strict=True)]
        best = " best" if found.best and one.number == found.best.number else ""
        body += Markup('<polyline class="way {}{}" points="{}"><title>{}</title></polyline>').format(
            shades[one.number], best, " ".join(points), _told(found, one)
        )
    for x, scale in zip(xs, scales, strict=True):
        body += _drawn(float(x), scale, last=x == xs[-1])
    return Markup('<svg class="parallel" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"Parallel coordinates of {len(shown)} trials; the table below has the same numbers", body
    )


def _height(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _scale(found: Result, key: str, shown: Sequence[Tried]) -> Scale:
    one = found.sweep.space[key]
    if values := _few(one):
        width = 1 / len(values)
        places = {}
        for index, value in enumerate(values):  # side by side, the better above
            here = [trial for trial in shown if _same(trial.values[key], value)]
            for rank, trial in enumerate(here, start=1):
                places[trial.number] = width * (index + 0.5 + 0.6 * (rank / (len(here) + 1) - 0.5))
        return Scale(key, places, [(width * (index + 0.5), short(value)) for index, value in enumerate(values)])
    assert not isinstance(one, Choice)
    axis = svg.Axis(one.low, one.high, 0.0, 1.0, one.log)
    marks = _marks(one.low, one.high, one.log, whole=one.kind == "int")
    places = {trial.number: float(axis(trial.values[key])) for trial in shown}
    return Scale(key, places, [(float(axis(value)), svg.number(value)) for value in marks], one.log)


def _few(one: Dimension) -> list[Any]:
    """The values of a choice, or of a range that has FEW at most; else none."""
    if isinstance(one, Choice):
        return one.values
    step = one.step or (1 if one.kind == "int" else None)
    if one.log or step is None or (one.high - one.low) / step > FEW - 0.5:
        return []
    return [one.low + i * step for i in range(round((one.high - one.low) / step) + 1)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    return json.dumps(a) == json.dumps(b)  # 1 is not true


def _marks(low: float, high: float, log: bool, whole: bool) -> list[float]:
    """Both ends, and round numbers that are not too near to them."""
    axis = svg.Axis(low, high, 0.0, 1.0, log)
    inside = [v for v in svg.ticks(low, high, log) if not whole or v == round(v)]
    return [low, *(v for v in inside if 0.07 < float(axis(v)) < 0.93), high]


def _metric_scale(found: Result, shown: Sequence[Tried]) -> Scale:
    """Better is up. A value beyond twice the spread of the better three quarters stands at the lower end."""
    values = {one.number: one.value for one in shown if one.value is not None}
    best, worst = _ends(found, list(values.values()))
    axis = svg.Axis(worst, best, 0.0, 1.0)
    places = {number: float(np.clip(axis(value), 0, 1)) for number, value in values.items()}
    low, high = sorted((best, worst))
    marks = [value for value in svg.ticks(low, high) if low <= value <= high]
    return Scale(found.sweep.metric, places, [(float(axis(value)), svg.number(value)) for value in marks])


def _ends(found: Result, values: Sequence[float]) -> tuple[float, float]:
    """The best value, and the worst that is shown as it is."""
    ordered = sorted(values, reverse=found.sweep.direction == "maximize")
    best, worst = ordered[0], ordered[-1]
    most = best + 2 * (ordered[3 * (len(ordered) - 1) // 4] - best)
    return best, most if abs(most - best) > 0 and abs(worst - best) > abs(most - best) else worst


def _drawn(x: float, scale: Scale, last: bool) -> Markup:
    body = Markup('<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, TOP, HEIGHT - BOTTOM)
    above, _, name = scale.name.rpartition(".")
    lines = (
        [name + (", log" if scale.log else "")] if not above else [f"{above}.", name + (", log" if scale.log else "")]
    )
    for index, text in enumerate(lines):
        style = "middle heading" if index == len(lines) - 1 else "middle"
        body += Markup('<text class="{}" x="{:.1f}" y="{}">{}</text>').format(
            style, x, TOP - 12 - 15 * (len(lines) - 1 - index), text
        )
    for place, label in scale.labels:
        side = "end" if last else "begin"
        body += Markup('<text class="mark {}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            side, x + (-6 if last else 6), _height(place) + 4, label
        )
    return body


def _told(found: Result, one: Tried) -> str:
    values = ", ".join(f"{key} {short(value)}" for key, value in one.values.items())
    spread = "" if one.sd is None else f" (sd {one.sd:.2g}, n {one.n})"
    return f"trial {one.number}, {one.state}: {found.sweep.metric} {one.value:.4g}{spread}; {values}"


# ------------------------------------------------------------------------------------------------------- values and key


def course(found: Result) -> Markup:
    """The value of each trial by its number, and the best until then."""
    done = [one for one in found.tried if one.state == "done" and one.value is not None]
    if len(done) < 2:
        return Markup("")
    keep = np.minimum if found.sweep.direction == "minimize" else np.maximum
    so_far = keep.accumulate(np.array([one.value for one in done], dtype=np.float64))
    line = svg.Line("best so far", np.array([one.number for one in done]), so_far, "s1")
    return _scatter(found, "by trial", {one.number: float(one.number) for one in found.tried}, "trial", line=line)


def slice_of(found: Result, key: str) -> Markup:
    """The value of each trial over one key, whatever the others were."""
    one = found.sweep.space[key]
    if values := _few(one):
        at = {t.number: float(next(i for i, v in enumerate(values) if _same(t.values[key], v))) for t in found.tried}
        return _scatter(found, key, at, "", labels=[short(value) for value in values])
    log = not isinstance(one, Choice) and one.log
    return _scatter(found, key, {t.number: float(t.values[key]) for t in found.tried}, "log scale" if log else "", log)


def _scatter(
    found: Result,
    title: str,
    at: dict[int, float],
    x_name: str,
    log: bool = False,
    labels: Sequence[str] = (),
    line: svg.Line | None = None,
) -> Markup:
    shown = [one for one in reversed(found.ranked) if one.value is not None]
    if not shown:
        return Markup("")
    best, worst = _ends(found, [one.value for one in shown if one.value is not None])
    low, high = sorted((best, worst))
    pad = 0.06 * (high - low or 1)
    xs = [at[one.number] for one in shown]
    x = svg.Axis(*_widened(min(xs), max(xs), log, labels), svg.LEFT, svg.WIDTH - svg.RIGHT, log)
    y = svg.Axis(low - pad, high + pad, svg.HEIGHT - svg.BOTTOM, svg.TOP)
    body = svg.grid(x, y, x_name, labels)
    if line is not None:
        body += svg.path(x(line.x), np.clip(y(line.y), svg.TOP, svg.HEIGHT - svg.BOTTOM), line.style)
    shades = _shades(found)
    for one in shown:
        body += Markup('<circle class="try {}{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
            shades[one.number], " best" if one is found.best else "", float(x(at[one.number])),
            float(np.clip(y(one.value or 0.0), svg.TOP, svg.HEIGHT - svg.BOTTOM)), 3.5, _told(found, one),
        )  # fmt: skip
    return svg.figure(title, body)


def _widened(low: float, high: float, log: bool, labels: Sequence[Any]) -> tuple[float, float]:
    """A little more than the values take, so that none lies on the edge."""
    if labels:
        return -0.5, len(labels) - 0.5
    if log:
        return low / 1.15, high * 1.15
    pad = 0.05 * (high - low or 1)
    return low - pad, high + pad
