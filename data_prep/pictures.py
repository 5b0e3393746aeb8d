"""Pictures as small palette PNGs with transparency."""

from __future__ import annotations

import io
from typing import cast

from PIL import Image


def small_png(content: bytes, size_px: int, colours: int) -> bytes:
    """Shrink a picture so that its longer side is size_px, keep its transparency, write a palette PNG.

    Colour is averaged with its opacity as weight (premultiplied), so that no hidden colour bleeds into the edges.
    """
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    scale = size_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if picture.size != size:
        picture = picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA")
    palette = picture.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    out = io.BytesIO()
    palette.save(out, "PNG", optimize=True)
    return out.getvalue()


def is_visible(content: bytes) -> bool:
    """Whether anything shows once the picture lies on white, as decoding puts it."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    (darkest, _) = Image.alpha_composite(white, picture).convert("L").getextrema()
    return cast("int", darkest) < 250
