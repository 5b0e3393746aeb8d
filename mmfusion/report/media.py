"""Parts as HTML that needs nothing else: a picture to see, a clip to play, a series to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile
from markupsafe import Markup
from PIL import Image

from mmfusion.data.series import array_of, length_s, times_of
from mmfusion.report import svg
from mmfusion.types import Part

LOSSLESS_PX = 128  # a picture this small is shown to the pixel
LARGEST_PX = 512


def media(shown: Part, alt: str) -> Markup:
    """A decoded picture, sound or series; `alt` says in words what a picture or sound is."""
    array = array_of(shown)
    if shown.type == "image":
        return Markup('<img class="input" src="{}" alt="{}">').format(picture(array), alt)
    if shown.type == "audio":
        rate_hz = shown.rate_hz or 16000
        return svg.waveform(array, rate_hz, alt) + Markup(
            '<audio controls preload="metadata" src="{}" aria-label="{}"></audio>'
        ).format(wav(array, rate_hz), alt)
    return Markup('<div class="series">{}</div>').format(
        svg.series(array, times_of(shown), shown.channels, shown.units)
    )


def about_series(whole: Part) -> str:
    """How long a series is and where it was worn."""
    return duration(length_s(whole)) + (f", {whole.place}" if whole.place else "")


def duration(seconds: float) -> str:
    """In the unit in which it is read: 1.5 s, 12 min, 33.3 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def picture(pixels: np.ndarray) -> str:
    """uint8 [height, width, 3] as a data address, at most LARGEST_PX long; large ones are compressed with loss."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= LOSSLESS_PX:
        image.save(file, "PNG", optimize=True)
        return _uri("image/png", file)
    image.thumbnail((LARGEST_PX, LARGEST_PX))
    image.save(file, "WEBP", quality=85)
    return _uri("image/webp", file)


def wav(wave: np.ndarray, rate_hz: float) -> str:
    """float32 [T] as a data address of a 16-bit WAV."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), round(rate_hz), format="WAV", subtype="PCM_16")
    return _uri("audio/wav", file)


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
