"""Bytes to arrays: one explicit decoder per modality, limits before allocation, nothing that executes.

Bad media raise SkipSample with a short reason that can be counted; arrays that must never be opened (objects, a header
that lies about its size) and a series that contradicts its part list raise DataError and stop the run.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import soundfile
from annotated_types import Gt
from PIL import Image, ImageOps, UnidentifiedImageError

from mmfusion.data.cache import Cache
from mmfusion.data.media import check_ogg, check_wav, npy_array, npy_header
from mmfusion.types import MEASURABLE, DataError, Modality, Part, Sample, SkipSample

SOUND_HZ = (1_000, 384_000)  # rates that a sound may have
_FORMATS = ("PNG", "JPEG", "WEBP")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one part may hold at most; more of it costs the sample."""

    pixels: Annotated[int, Gt(0)] = 40_000_000
    audio_s: Annotated[float, Gt(0)] = 600.0
    audio_channels: Annotated[int, Gt(0)] = 8
    series_values: Annotated[int, Gt(0)] = 50_000_000


LIMITS = Limits()


# ------------------------------------------------------------------------------------------------------------ pictures


def _on_white(picture: Image.Image) -> Image.Image:
    with_alpha = picture.convert("RGBA")
    white = Image.new("RGB", with_alpha.size, (255, 255, 255))
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def _to_rgb(picture: Image.Image) -> Image.Image:
    """One defined result for every mode: 16-bit keeps its high byte, transparency lies on white, all else as Pillow."""
    if picture.mode.startswith("I"):
        high = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8), "L").convert("RGB")
    if picture.mode == "F":
        raise SkipSample("unknown picture mode", "floating point")
    if "A" in picture.getbands() or "transparency" in picture.info:
        return _on_white(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextmanager
def _opened_picture(part: Part, limits: Limits) -> Iterator[Image.Image]:
    """The picture, its pixels not read yet; what goes wrong with it, here or in the block, is a SkipSample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own cap is below
            picture = Image.open(io.BytesIO(_bytes(part)), formats=_FORMATS)
        width, height = picture.size
        if width * height > limits.pixels:
            raise SkipSample("too many pixels", f"{width} x {height}, at most {limits.pixels}")
        yield picture
    except Image.DecompressionBombError as error:
        raise SkipSample("too many pixels", str(error)) from None
    except UnidentifiedImageError:
        raise SkipSample("corrupt picture", f"no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        EOFError,
        struct.error,
        zlib.error,
    ) as error:
        raise SkipSample("corrupt picture", str(error)) from None


def _decode_image(part: Part, limits: Limits) -> Part:
    """uint8 [height, width, 3], upright."""
    with _opened_picture(part, limits) as picture:
        picture.load()
        if picture.getexif().get(0x0112, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return dataclasses.replace(part, data=np.asarray(_to_rgb(picture)))


# --------------------------------------------------------------------------------------------------------------- sound


def _open_sound(part: Part, limits: Limits) -> soundfile.SoundFile:
    data = _bytes(part)
    check_wav(data)
    check_ogg(data)
    try:
        sound = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise SkipSample("corrupt sound", str(error).split("<")[0]) from None
    rate = sound.samplerate
    if not SOUND_HZ[0] <= rate <= SOUND_HZ[1]:
        raise SkipSample("impossible sample rate", f"{rate} Hz")
    if part.rate_hz is not None and part.rate_hz != rate:
        raise SkipSample("another sample rate than declared", f"{rate} Hz, declared {part.rate_hz}")
    if sound.channels > limits.audio_channels:
        raise SkipSample("too many sound channels", f"{sound.channels}, at most {limits.audio_channels}")
    if sound.frames <= 0:
        raise SkipSample("empty sound")
    if sound.frames > limits.audio_s * rate:
        raise SkipSample("sound too long", f"{sound.frames / rate:.0f} s, at most {limits.audio_s}")
    return sound


def _decode_audio(part: Part, limits: Limits) -> Part:
    """float32 [T], the mean of the channels, at the file's own rate, which `rate_hz` names afterwards."""
    with _open_sound(part, limits) as sound:
        try:
            wave = sound.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise SkipSample("corrupt sound", str(error)) from None
        if len(wave) != sound.frames:
            raise SkipSample("truncated sound", f"{len(wave)} of {sound.frames} frames")
        rate = float(sound.samplerate)
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if np.isnan(mono).any():
        raise SkipSample("NaN in sound")
    if np.abs(mono).max() > MEASURABLE:
        raise SkipSample("values beyond all measure", "sound lies between -1 and 1")
    return dataclasses.replace(part, data=np.ascontiguousarray(mono), rate_hz=rate)


# -------------------------------------------------------------------------------------------------------------- series


def check_series(part: Part) -> tuple[int, int]:
    """(T, C) of a sensor part's bytes, from the header alone. Raises DataError if the part list says otherwise."""
    shape = npy_header(_bytes(part))[0]
    if len(shape) != 2 or shape[1] != len(part.channels):
        raise DataError(
            f"{part.file}: an array {list(shape)} for {len(part.channels)} channels; it must be [time, channel]"
        )
    if part.times is not None and (times := npy_header(_bytes(part, times=True))[0]) != shape[:1]:
        raise DataError(f"{part.times}: an array {list(times)} of times for {shape[0]} rows")
    return shape[0], shape[1]


def _decode_sensor(part: Part, limits: Limits) -> Part:
    """float32 [T, C], NaN where nothing (or what cannot be) was measured, and float64 [T] seconds after start_s."""
    steps, channels = check_series(part)
    if steps * channels > limits.series_values:
        raise SkipSample("series too long", f"{steps} x {channels} values, at most {limits.series_values}")
    if steps == 0:
        raise SkipSample("empty series")
    with np.errstate(over="ignore"):
        series = np.array(npy_array(_bytes(part)), dtype=np.float32)
    series[~(np.abs(series) <= MEASURABLE)] = np.nan  # infinity too
    if np.isnan(series).all():
        raise SkipSample("empty series", "no value was measured")
    if part.rate_hz is not None:
        times = np.arange(steps) / part.rate_hz
    else:
        times = npy_array(_bytes(part, times=True)).astype(np.float64)
        if not (np.abs(times) <= MEASURABLE).all() or (np.diff(times) <= 0).any():
            raise SkipSample("times run backwards", f"{part.times}: each must be later than the one before")
    return dataclasses.replace(part, data=series, times_s=times)


# ---------------------------------------------------------------------------------------------------- parts and samples


def _bytes(part: Part, times: bool = False) -> bytes:
    data = part.times_s if times else part.data
    if not isinstance(data, bytes):
        raise TypeError(f"{part.file}: holds {type(data).__name__}, not the member's bytes")
    return data


def _decode_text(part: Part, limits: Limits) -> Part:
    """As it is: `format` has looked at it."""
    return part


_DECODERS: Mapping[Modality, Callable[[Part, Limits], Part]] = {
    "image": _decode_image,
    "audio": _decode_audio,
    "sensor": _decode_sensor,
    "text": _decode_text,
}


def decode_part(part: Part, limits: Limits = LIMITS) -> Part:
    """The part with an array for its bytes, as `types.Part` says. Raises SkipSample, or DataError for a hostile npy."""
    decode = _DECODERS.get(part.type)
    if decode is None:
        raise SkipSample("no decoder", part.type)
    return decode(part, limits)


def decode_sample(sample: Sample, limits: Limits = LIMITS, cache: Cache | None = None) -> Sample:
    """The sample with every part decoded; messages name shard, key and member. `cache` keeps what was decoded."""
    parts: list[Part] = []
    for part in sample.parts:
        try:
            if cache is None or part.type == "text":
                parts.append(decode_part(part, limits))
            else:
                name = (sample.url, sample.key, part.file)
                parts.append(cache.get(name, lambda part=part: decode_part(part, limits), array_bytes))
        except SkipSample as error:
            raise SkipSample(error.reason, f"{sample.url}: key {sample.key!r}: {part.file}: {error}") from None
        except DataError as error:
            raise DataError(f"{sample.url}: key {sample.key!r}: {part.file}: {error}") from None
    if not parts:
        raise SkipSample("no parts", f"{sample.url}: key {sample.key!r}")
    return dataclasses.replace(sample, parts=tuple(parts))


def array_bytes(part: Part) -> int:
    """What a decoded part holds in memory."""
    return sum(data.nbytes for data in (part.data, part.times_s) if isinstance(data, np.ndarray))


def duration_s(part: Part) -> float:
    """Seconds of a sound or series from its header, undecoded. Raises SkipSample or DataError as decoding would."""
    return duration_and_rate(part)[0]


def duration_and_rate(part: Part) -> tuple[float, float | None]:
    """`duration_s`, and the rate in hertz; None for a series that brings its own times."""
    if part.type == "audio":
        with _open_sound(part, LIMITS) as sound:
            return sound.frames / sound.samplerate, float(sound.samplerate)
    steps, _ = check_series(part)
    if part.rate_hz is not None:
        return steps / part.rate_hz, part.rate_hz
    times = npy_array(_bytes(part, times=True))
    return float(times[-1] - times[0]) if len(times) else 0.0, None


def size_px(part: Part) -> tuple[int, int]:
    """(width, height) of a picture as it is stored, from its header. Raises SkipSample as opening it would."""
    with _opened_picture(part, LIMITS) as picture:
        return picture.size
