"""A series as a small raster, for loggers that take no vector graphics."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmfusion.data.series import array_of, times_of
from mmfusion.types import Part

WIDTH, HEIGHT = 520, 260  # px
LEFT, TOP, RIGHT, BOTTOM = 56, 30, WIDTH - 12, HEIGHT - 26  # the frame
FINE = 3  # lines are drawn so much larger, then scaled down
COLOURS = ("#1f5aa8", "#b04a0a", "#1a7467", "#8a3ffc", "#7a6000", "#b3204f")
INK = "#444444"


def plot(part: Part) -> np.ndarray:
    """A decoded series over its seconds, a line for each channel with gaps where it was not measured.

    uint8 [HEIGHT, WIDTH, 3]. More channels than COLOURS share them; names that have no room are left out.
    """
    times, values = times_of(part), array_of(part)
    measured = values[np.isfinite(values)]
    low, high = (float(measured.min()), float(measured.max())) if measured.size else (0.0, 1.0)
    x = LEFT + (times - times[0]) / max(times[-1] - times[0], 1e-9) * (RIGHT - LEFT)
    y = BOTTOM - (values - low) / max(high - low, 1e-9) * (BOTTOM - TOP)
    large = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    draw = ImageDraw.Draw(large)
    draw.rectangle([edge * FINE for edge in (LEFT, TOP, RIGHT, BOTTOM)], outline="#cccccc", width=FINE)
    for number, channel in enumerate(y.T):
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(channel)):
            points = np.stack([x[run], channel[run]], axis=1) * FINE
            draw.line(points.ravel().tolist(), fill=COLOURS[number % len(COLOURS)], width=FINE + 1)
    image = large.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    _label(ImageDraw.Draw(image), part, (low, high), float(times[-1] - times[0]))
    return np.asarray(image)


def _label(draw: ImageDraw.ImageDraw, part: Part, values: tuple[float, float], seconds: float) -> None:
    font = ImageFont.load_default(12)
    for value, height, anchor in zip(values, (BOTTOM, TOP), ("rs", "rt"), strict=True):
        draw.text((LEFT - 6, height), f"{value:.3g}", INK, font, anchor)
    units = ", ".join(dict.fromkeys(part.units))
    draw.text((LEFT - 6, (TOP + BOTTOM) / 2), units, INK, font, "rm")
    draw.text((LEFT, BOTTOM + 6), "0", INK, font, "lt")
    draw.text((RIGHT, BOTTOM + 6), f"{seconds:.3g} s", INK, font, "rt")
    left = float(LEFT)
    for number, channel in enumerate(part.channels):
        width = draw.textlength(channel, font)
        if left + width > RIGHT:
            return
        draw.text((left, TOP - 8), channel, COLOURS[number % len(COLOURS)], font, "ls")
        left += width + 14
