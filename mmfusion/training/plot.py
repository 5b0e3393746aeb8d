"""Lines as a small raster, for loggers and folders that a person looks into: no vector graphics, no large library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmfusion.data.series import array_of, times_of
from mmfusion.types import Part

WIDTH, HEIGHT = 520, 260  # px
LEFT, TOP, RIGHT, BOTTOM = 56, 30, WIDTH - 12, HEIGHT - 26  # the frame
FINE = 3  # lines are drawn so much larger, then scaled down
COLOURS = ("#1f5aa8", "#b04a0a", "#1a7467", "#8a3ffc", "#7a6000", "#b3204f")
INK = "#444444"


def lines(
    x: np.ndarray, y: np.ndarray, *, names: Sequence[str], unit: str, ends: tuple[str, str], mark: float | None = None
) -> np.ndarray:
    """C lines y[T, C] over x[T], with gaps where a value is not finite; uint8 [HEIGHT, WIDTH, 3].

    `ends` are written below the first and the last x; a vertical line stands at `mark`. More lines than COLOURS share
    them; names that have no room are left out.
    """
    finite = y[np.isfinite(y)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)

    def across(value: np.ndarray | float) -> np.ndarray:
        return LEFT + (np.asarray(value) - x[0]) / max(x[-1] - x[0], 1e-9) * (RIGHT - LEFT)

    rows = BOTTOM - (y - low) / max(high - low, 1e-9) * (BOTTOM - TOP)
    large = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    draw = ImageDraw.Draw(large)
    draw.rectangle([edge * FINE for edge in (LEFT, TOP, RIGHT, BOTTOM)], outline="#cccccc", width=FINE)
    if mark is not None:
        at = float(across(mark)) * FINE
        draw.line([at, TOP * FINE, at, BOTTOM * FINE], fill=INK, width=FINE)
    for number, row in enumerate(rows.T):
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(row)):
            points = np.stack([across(x[run]), row[run]], axis=1) * FINE
            draw.line(points.ravel().tolist(), fill=COLOURS[number % len(COLOURS)], width=FINE + 1)
    image = large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    _label(ImageDraw.Draw(image), names, unit, (f"{low:.3g}", f"{high:.3g}"), ends)
    return np.asarray(image)


def _label(
    draw: ImageDraw.ImageDraw, names: Sequence[str], unit: str, values: tuple[str, str], ends: tuple[str, str]
) -> None:
    font = ImageFont.load_default(12)
    draw.text((LEFT - 6, BOTTOM), values[0], INK, font, "rs")
    draw.text((LEFT - 6, TOP), values[1], INK, font, "rt")
    draw.text((LEFT - 6, (TOP + BOTTOM) / 2), unit, INK, font, "rm")
    draw.text((LEFT, BOTTOM + 6), ends[0], INK, font, "lt")
    draw.text((RIGHT, BOTTOM + 6), ends[1], INK, font, "rt")
    left = float(LEFT)
    for number, name in enumerate(names):
        width = draw.textlength(name, font)
        if left + width > RIGHT:
            return
        draw.text((left, TOP - 8), name, COLOURS[number % len(COLOURS)], font, "ls")
        left += width + 14


def series(part: Part) -> np.ndarray:
    """A decoded series over its seconds, a line for each channel."""
    times = times_of(part)
    seconds, units = float(times[-1] - times[0]), ", ".join(dict.fromkeys(part.units))
    return lines(times, array_of(part), names=part.channels, unit=units, ends=("0", f"{seconds:.3g} s"))
