"""What a user may give for a picture, a sound, a series or a text -> a decoded `Part`."""

from __future__ import annotations

import errno
import io
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image, ImageOps

from mmfusion.data.decode import SOUND_HZ, decode_part
from mmfusion.data.format import SERIES_HZ
from mmfusion.data.series_csv import read_series
from mmfusion.errors import UserError
from mmfusion.types import MEASURABLE, DataError, Modality, Part, SkipSample

Input = str | Path | bytes | np.ndarray | Image.Image | Part
Inputs = Input | Sequence[Input]
Things = Input | Sequence[Input | Sequence[Input]]  # an item of it is one thing, in one part or several
NPY = b"\x93NUMPY"
SOUND_CHANNELS = 64  # of an array of sound; more are seconds in the wrong place


class InputError(UserError, ValueError):
    """An input that cannot be used; the message says which one, what is wrong, and what is expected."""


class Describing(TypedDict, total=False):
    """How inputs are described: the arguments of `Description`."""

    rate_hz: float | None
    channels: Sequence[str]
    units: Sequence[str]
    place: str | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is not in an input itself: the rate of an array or a series, a series' channels, their units, its place."""

    rate_hz: float | None = None
    channels: Sequence[str] = ()
    units: Sequence[str] = ()
    place: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("channels", self.channels), ("units", self.units)):
            if not isinstance(value, (list, tuple)):
                raise InputError(f"{name}: must be a list of names, not {value!r:.60}")
            for i, item in enumerate(value):
                checked_text(item, f"{name}[{i}]")
        if self.place is not None:
            checked_text(self.place, "place")


def part_of(modality: Modality, item: object, where: str, how: Description) -> Part:
    """Any kind of input as a decoded part of a modality; `where` names it in the InputError that is raised."""
    if isinstance(item, Part):
        return _own(modality, item, where)
    if modality == "text":
        return Part(type="text", text=checked_text(item, where))
    return _decoded(_medium(modality, item, where, how), where)


def _own(modality: Modality, part: Part, where: str) -> Part:
    """A part that was made elsewhere, held to what is asked of any other input; its times count before its rate."""
    if part.type != modality:
        raise InputError(f"{where}: is a part of type {part.type}")
    if modality == "text":
        return replace(part, text=checked_text(part.text, where))
    how = Description(rate_hz=part.rate_hz, channels=part.channels, units=part.units, place=part.place)
    if modality == "sensor":
        made = _series(part.data, where, how, _times(part.times_s, where))
        rate_hz = None if part.rate_hz is None else _rate(part.rate_hz, where, *SERIES_HZ)
    else:  # the rate of a file that says another one is refused
        made = replace(_medium(modality, part.data, where, how), rate_hz=part.rate_hz)
        rate_hz = None
    made = _decoded(made, where)
    found = {name: getattr(made, name) for name in ("data", "times_s", "channels", "units")}
    return replace(part, **found, rate_hz=rate_hz or made.rate_hz)


def _decoded(part: Part, where: str) -> Part:
    if not isinstance(part.data, bytes):
        return part
    try:
        return decode_part(part)
    except (SkipSample, DataError) as error:
        raise InputError(f"{where}: {error}") from error


def checked_text(item: object, where: str) -> str:
    if not isinstance(item, str) or not item.strip():
        raise InputError(f"{where}: must be a text, not {item!r:.60}")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {item!r:.60} cannot be written as UTF-8") from error
    return item


def regular(path: Path) -> Path:
    """The same path. Raises OSError where there is no file: opening a pipe would wait for whoever writes into it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    return path


def _rate(rate_hz: object, where: str, low: float, high: float) -> float:
    if isinstance(rate_hz, (int, float, np.integer, np.floating)) and not isinstance(rate_hz, bool):
        number = float(rate_hz)
        if low <= number <= high:
            return number
    problem = f"needs rate_hz, how many values make a second, {low:g} to {high:g}, not {rate_hz!r:.60}"
    raise InputError(f"{where}: {problem}")


def _medium(modality: Modality, item: object, where: str, how: Description) -> Part:
    """A picture, sound or series given as path, bytes, array or PIL image; files stay bytes, decoded as in training."""
    if isinstance(item, (str, Path)):
        try:
            item = regular(Path(item)).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{where}: {str(item)!r:.200} cannot be read ({reason})") from error
    if modality == "image":
        return Part(type="image", file="image", data=_picture(item, where))
    if modality == "audio":
        if isinstance(item, bytes):
            return Part(type="audio", file="audio", data=item)
        wave = _wave(item, where)
        return Part(type="audio", data=wave, rate_hz=_rate(how.rate_hz, where, *SOUND_HZ))
    if modality != "sensor":
        raise InputError(f"{where}: {modality} cannot be given here")
    return _series(item, where, how)


def _picture(item: object, where: str) -> bytes:
    """Bytes of a picture file; arrays and PIL images become one, so that transparency has one result everywhere."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray):
        channels = item.shape[2:]
        if item.dtype != np.uint8 or item.ndim < 2 or not item.size or channels not in ((), (3,), (4,)):
            raise InputError(
                f"{where}: an array must be uint8 [height, width, 3 or 4] or [height, width], "
                f"not {item.dtype} {list(item.shape)}"
            )
        item = Image.fromarray(item)
    if not isinstance(item, Image.Image):
        raise InputError(f"{where}: must be a path, bytes, array or PIL image, not {type(item).__name__}")
    if not min(item.size):
        raise InputError(f"{where}: a picture of {item.width} x {item.height} pixels")
    file = io.BytesIO()
    try:  # a PIL image reads its file only now
        item = ImageOps.exif_transpose(item)
        if item.mode.startswith("I"):  # 16 bits, in whatever order or width
            item = Image.fromarray(np.asarray(item).clip(0, 2**16 - 1).astype(np.uint16))
        elif item.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # what else a PNG can hold
            item = item.convert("RGB")
        item.save(file, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error) as error:
        raise InputError(f"{where}: cannot be read ({error})") from error
    return file.getvalue()


def _wave(item: object, where: str) -> np.ndarray:
    """float32 [T], the mean of the channels; integers are scaled to -1..1, unsigned ones around their middle."""
    if not isinstance(item, np.ndarray) or item.ndim not in (1, 2) or not item.size or item.dtype.kind not in "fiu":
        raise InputError(f"{where}: must be a path, bytes, or an array of numbers [T] or [T, channels]")
    if item.ndim == 2 and item.shape[1] > SOUND_CHANNELS:
        problem = f"an array {list(item.shape)} would be a sound of {item.shape[1]} channels"
        raise InputError(f"{where}: {problem}; [channels, T] must be turned: give array.T")
    scale = 1.0 if item.dtype.kind == "f" else 2.0 ** (8 * item.dtype.itemsize - 1)
    middle = scale if item.dtype.kind == "u" else 0.0
    wave = ((item - middle) / scale).astype(np.float32) if scale > 1 else item.astype(np.float32)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if not (np.abs(wave) <= MEASURABLE).all():
        raise InputError(f"{where}: holds NaN or values beyond all measure; sound lies between -1 and 1")
    return wave


def _times(times: object, where: str) -> bytes | None:
    """A part's own times as an npy file."""
    if isinstance(times, np.ndarray) and times.dtype.kind in "fiu":
        return _npy(times.astype(np.float64))
    if times is None or isinstance(times, bytes):
        return times
    raise InputError(f"{where}: times_s must be bytes of an npy file or an array of numbers [T]")


def _series(item: object, where: str, how: Description, times: bytes | None = None) -> Part:
    """An npy file or array of `how.channels`, or a CSV table, whose own names, units and times may be replaced."""
    names, units = tuple(how.channels), tuple(how.units)
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "fiu" or not item.size:
            raise InputError(f"{where}: an array must be of numbers [T, C], not {item.dtype} {list(item.shape)}")
        item = _npy(np.asarray(item, dtype=np.float32))
    if not isinstance(item, bytes):
        raise InputError(f"{where}: must be a path of an npy or CSV file, bytes, or an array [T, C]")
    if not item.startswith(NPY):
        try:
            table = read_series(item)
        except DataError as error:
            raise InputError(f"{where}: {error}") from error
        names, units, item = names or table.names, units or table.units, _npy(table.values)
        times = times or (None if table.times is None else _npy(table.times))
        if "" in units:
            problem = f"column {names[units.index('')]!r} names no unit; write it in brackets behind the name"
            raise InputError(f"{where}: {problem} (1 for a number without one), or give units")
    if not names:
        raise InputError(f"{where}: a series needs channels and units by name")
    if len(names) != len(units):
        raise InputError(f"{where}: {len(names)} channels, but {len(units)} units")
    part = Part(type="sensor", file="npy", data=item, channels=names, units=units, place=how.place)
    if times is not None:
        return replace(part, times="times", times_s=times)
    return replace(part, rate_hz=_rate(how.rate_hz, where, *SERIES_HZ))


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()
