"""Small plots as inline SVG. Colours come from the page's classes, so that a plot follows light and dark.

A plot is drawn about 340 units wide, near the size at which a phone shows it, so that its letters stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
LETTER = 12  # units that a letter takes
POINTS = 240  # more than a line this wide can show


@dataclass(frozen=True)
class Line:
    """A named curve; `style` is a class of the page, `s1` to `s6`. Points that are not finite leave a gap."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str


@dataclass(frozen=True)
class Axis:
    """From data to drawing units; on a log axis both ends are positive."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        low, high, x = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.log:
            low, high, x = math.log(low), math.log(high), np.log(np.maximum(x, 1e-300))
        return self.begin + (x - low) / (high - low or 1) * (self.end - self.begin)


def ticks(low: float, high: float, log: bool = False, about: int = 4) -> list[float]:
    """Round numbers within [low, high]: steps of 1, 2 or 5; on a log axis 1, 2, 5 of each decade, or decades alone."""
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1,)):
            found = [digit * 10.0**e for e in exponents for digit in digits if low <= digit * 10.0**e <= high]
            if len(found) <= 2 * about:
                break
        return found if len(found) > 1 else [low, high]
    span = (high - low) or 1.0
    raw = span / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(s * size for s in (1, 2, 5, 10) if s * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label, short: 0.05, 20, 1k, 2.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def curves(lines: Sequence[Line], *, title: str, x_name: str, log: bool = False, named: bool = False) -> Markup:
    """Lines over one x axis with round ticks; nothing where no point is finite.

    Names stand in a legend, and, if `named`, also at each line's end, which is room for one letter.
    """
    finite = [np.isfinite(line.y) for line in lines]
    if not any(mask.any() for mask in finite):
        return Markup("")
    xs = np.concatenate([line.x[mask] for line, mask in zip(lines, finite, strict=True)]).astype(np.float64)
    ys = np.concatenate([line.y[mask] for line, mask in zip(lines, finite, strict=True)]).astype(np.float64)
    log = log and bool((ys > 0).all())
    low, high = float(ys.min()), float(ys.max())
    pad = 0.05 * (high - low or abs(high) or 1)
    low, high = (low / 1.08, high * 1.08) if log else (low - pad, high + pad)
    x = Axis(float(xs.min()), float(xs.max()), LEFT, WIDTH - RIGHT - (LETTER if named else 0))
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    body = grid(x, y, x_name)
    for line in lines:
        body += path(x(line.x), y(line.y), line.style)
    if named:
        body += _names([(line, mask) for line, mask in zip(lines, finite, strict=True) if mask.any()], x, y)
    return figure(title, body, _legend(lines))


def histogram(edges: Sequence[float], counts: Sequence[int], *, title: str, x_name: str, log: bool = False) -> Markup:
    """Bars between `edges` [n + 1], whose heights are `counts` [n]; `log` draws the edges in their logarithm."""
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT, log)
    y = Axis(0, max(*counts, 4), HEIGHT - BOTTOM, TOP)
    body = grid(x, y, f"{x_name}, log scale" if log else x_name)
    for low, high, count in zip(x(np.array(edges[:-1])), x(np.array(edges[1:])), counts, strict=True):
        if count:
            top = min(float(y(count)), HEIGHT - BOTTOM - 1.5)  # a single one among thousands is still seen
            body += Markup('<rect class="bin" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                low, top, max(high - low - 0.5, 0.5), HEIGHT - BOTTOM - top
            )
    return figure(title, body, Markup(""))


def grid(x: Axis, y: Axis, x_name: str, labels: Sequence[str] = ()) -> Markup:
    """Lines at round numbers of y, round numbers below, or `labels` at 0, 1, 2, …"""
    body = Markup("")
    for value in ticks(y.low, y.high, y.log):
        at = float(y(value))
        body += Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, at, at
        )
        body += Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 5, at + 4, number(value))
    for value, label in enumerate(labels) if labels else ((v, number(v)) for v in ticks(x.low, x.high, x.log)):
        body += Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(
            float(x(value)), HEIGHT - BOTTOM + 14, label
        )
    body += Markup('<text class="end" x="{}" y="{}">{}</text>').format(WIDTH - RIGHT, HEIGHT - 4, x_name)
    return body + (Markup('<text x="2" y="{}">log scale</text>').format(HEIGHT - 4) if y.log else Markup(""))


def path(x: np.ndarray, y: np.ndarray, style: str) -> Markup:
    """A line through points, with a gap where one is not finite."""
    if len(x) > POINTS:
        keep = np.linspace(0, len(x) - 1, POINTS).round().astype(int)
        x, y = x[keep], y[keep]
    body = Markup("")
    runs = np.split(np.arange(len(y)), np.flatnonzero(np.diff(np.isfinite(y))) + 1)
    for run in (run for run in runs if len(run) and np.isfinite(y[run[0]])):
        if len(run) == 1:
            body += Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(style, x[run[0]], y[run[0]])
        else:
            points = " ".join(f"{x[i]:.1f},{y[i]:.1f}" for i in run)
            body += Markup('<polyline class="line {}" points="{}"/>').format(style, points)
    return body


def _names(lines: Sequence[tuple[Line, np.ndarray]], x: Axis, y: Axis) -> Markup:
    """Each line's name behind its last point, moved apart where two would meet."""
    ends = sorted((float(y(line.y[mask][-1])), float(x(line.x[mask][-1])), line.name) for line, mask in lines)
    body, free = Markup(""), float(TOP)
    for index, (at, end, name) in enumerate(ends):
        lowest = HEIGHT - BOTTOM - LETTER * (len(ends) - 1 - index)
        at = min(max(at, free), lowest)
        free = at + LETTER
        body += Markup('<text class="name" x="{:.1f}" y="{:.1f}">{}</text>').format(end + 4, at + 4, name)
    return body


def _legend(lines: Sequence[Line]) -> Markup:
    if len(lines) < 2:
        return Markup("")
    items = Markup("").join(
        Markup('<span class="key"><svg viewBox="0 0 22 8" aria-hidden="true"><polyline class="line {}" '
               'points="0,4 22,4"/></svg>{}</span>').format(line.style, line.name)
        for line in lines
    )  # fmt: skip
    return Markup('<span class="legend">{}</span>').format(items)


def figure(title: str, body: Markup, legend: Markup = Markup("")) -> Markup:  # noqa: B008  (it does not change)
    """A plot with its title, and its legend beside it."""
    return Markup(
        '<figure class="plot"><figcaption>{} {}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, legend, WIDTH, HEIGHT, title, body)


def interval(
    value: float, ci95: Sequence[float] | None, chance: float, baselines: Mapping[str, float], *, log_to: float | None
) -> Markup:
    """A metric on its axis: the interval as a bar, the value as a dot, chance as a broken line, baselines as diamonds.

    The axis is 0 to 1, or, for ranks, 1 to `log_to` on a log scale.
    """
    x = Axis(1, max(2.0, log_to), 6, 234, log=True) if log_to else Axis(0, 1, 6, 234)

    def at(v: float) -> float:
        return float(x(min(max(v, x.low), x.high)))

    body = Markup('<line class="axis" x1="6" x2="234" y1="16" y2="16"/>')
    for tick in (1, 10, 100, 1000) if log_to else (0, 0.25, 0.5, 0.75, 1):
        if tick <= x.high:
            body += Markup('<line class="axis" x1="{0:.1f}" x2="{0:.1f}" y1="13" y2="19"/>').format(at(tick))
    body += Markup('<line class="chance" x1="{0:.1f}" x2="{0:.1f}" y1="3" y2="29"/>').format(at(chance))
    if ci95 is not None:
        low, high = at(ci95[0]), at(ci95[1])
        body += Markup('<rect class="range" x="{:.1f}" y="9" width="{:.1f}" height="14" rx="2"/>').format(
            low, max(high - low, 1.0)
        )
    for index, baseline in enumerate(baselines.values()):
        body += Markup('<path class="baseline b{}" d="M{:.1f} 9l6 7-6 7-6-7z"/>').format(index + 1, at(baseline))
    body += Markup('<circle class="value" cx="{:.1f}" cy="16" r="4"/>').format(at(value))
    return Markup('<svg class="interval" viewBox="0 0 240 32" aria-hidden="true">{}</svg>').format(body)


def waveform(wave: np.ndarray, rate_hz: float, title: str) -> Markup:
    """The envelope of a mono clip [T], lowest and highest sample of each column."""
    columns = np.array_split(wave, min(len(wave), 320))
    peak = float(np.abs(wave).max()) or 1.0
    top = " ".join(f"{i},{30 - 28 * column.max() / peak:.1f}" for i, column in enumerate(columns))
    low = " ".join(f"{i},{30 - 28 * columns[i].min() / peak:.1f}" for i in reversed(range(len(columns))))
    label = f"{title}: {len(wave) / rate_hz:.1f} s"
    return Markup(
        '<svg class="wave" viewBox="0 0 {} 60" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<polygon points="{} {}"/></svg>'
    ).format(len(columns), label, top, low)


def series(values: np.ndarray, times_s: np.ndarray, channels: Sequence[str], units: Sequence[str]) -> Markup:
    """A sensor series [T, C], one plot for each unit, at most three channels a plot so that lines can be told apart."""
    plots = Markup("")
    for unit in dict.fromkeys(units):
        of_unit = [c for c, u in enumerate(units) if u == unit]
        for begin in range(0, len(of_unit), 3):
            group = of_unit[begin : begin + 3]
            lines = [Line(channels[c], times_s, values[:, c], f"s{i + 1}") for i, c in enumerate(group)]
            name = unit if len(group) > 1 else f"{channels[group[0]]}, {unit}"  # a lone line has no legend
            plots += curves(lines, title=name, x_name="s")
    return plots
