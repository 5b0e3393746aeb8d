"""A file to a part: pictures and sounds as they lie, series made one kind of npy."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmfusion.data.media import npy_array
from mmfusion.data.pack.draft import SUFFIXES, Piece, modality_of, read_bytes, suffix_of
from mmfusion.data.series import UNITS
from mmfusion.data.series_csv import read_series
from mmfusion.types import DataError, Part, SkipSample

_SPELLINGS: Mapping[str, str] = {
    **dict.fromkeys(("m/s²", "m/s2", "m/s/s", "m s^-2"), "m/s^2"),
    **dict.fromkeys(("°/s", "dps", "degrees/s"), "deg/s"),
    "°": "deg",
    "°C": "degC",
    "°F": "degF",
    "µT": "uT",
    "μT": "uT",
    "Gs": "gauss",
}
_KNOWN = f"{', '.join(UNITS)} (1: a number without a unit)"


def file_piece(path: Path, part: Part, *, name: str, tag: str = "") -> Piece:
    """The piece of a file: `part` is what is known of it, `name` what to call it, `tag` what tells it from its kind."""
    return Piece(file=name, read=lambda: _read(path, part, f"{tag}." if tag else ""))


def _read(path: Path, part: Part, tag: str) -> Part:
    data = read_bytes(path)
    suffix = suffix_of(path)
    if modality_of(path) != part.type:
        known = ", ".join(name for name, modality in SUFFIXES.items() if modality == part.type)
        raise SkipSample("another kind of file", f".{suffix} for {part.type}; known are {known}")
    if part.type != "sensor":
        return dataclasses.replace(part, file=f"{tag}{suffix}", data=data)
    if suffix == "npy":
        return series_part(_array(data), part, tag)
    return _from_csv(data, part, tag)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def series_part(values: np.ndarray, part: Part, tag: str = "", times: np.ndarray | None = None) -> Part:
    """`part` with values[T, C] as a float32 npy and times[T] in seconds after its `start_s`.

    Raises SkipSample unless every channel has a name and a unit that is understood, and the series times or a rate.
    """
    names, width = part.channels, values.shape[1]
    if len(names) != width:
        said = f"{len(names)} channel names" if names else "no channel names"
        raise SkipSample("channels", f"{said} for {width} channels; give --channels NAME,NAME,…")
    if bare := [name for name, unit in zip(names, part.units or ("",) * width, strict=False) if not unit]:
        remedy = "give --units UNIT,… or choose columns with --channels NAME,…"
        raise SkipSample("no unit", f"of {', '.join(bare)}; {remedy}; known are {_KNOWN}")
    units = tuple(_unit(unit) for unit in (part.units * width if len(part.units) == 1 else part.units))
    if len(units) != width:
        raise SkipSample("units", f"{len(units)} units for {width} channels; give one for all or one for each")
    made = dataclasses.replace(part, file=f"{tag}npy", units=units, data=npy(values.astype(np.float32)))
    if times is None:
        if part.rate_hz is None:
            raise SkipSample("no times", "neither a column time_s nor a rate; give --rate-hz")
        return made
    return dataclasses.replace(made, rate_hz=None, times=f"{tag}times.npy", times_s=npy(times.astype(np.float64)))


def _unit(unit: str) -> str:
    unit = _SPELLINGS.get(unit, unit)
    if unit not in UNITS:
        raise SkipSample("unknown unit", f"{unit!r}; known are {_KNOWN}")
    return unit


def _array(data: bytes) -> np.ndarray:
    """[T, C] of an npy; one dimension is one channel."""
    try:
        values = npy_array(data)
    except DataError as error:
        raise SkipSample("bad npy", str(error)) from None
    if values.ndim not in (1, 2):
        raise SkipSample("bad npy", f"an array {list(values.shape)}; it must be [time, channel]")
    return values[:, None] if values.ndim == 1 else values


def _from_csv(data: bytes, part: Part, tag: str) -> Part:
    """Channels, units and times from the header; `part` says which channels, and the units that it does not name."""
    try:
        table = read_series(data, part.channels)
    except DataError as error:
        raise SkipSample("bad csv", str(error)) from None
    given = part.units * len(table.names) if len(part.units) == 1 else part.units
    units = tuple(unit or (given[i] if i < len(given) else "") for i, unit in enumerate(table.units))
    known = dataclasses.replace(part, channels=table.names, units=units, start_s=part.start_s + table.start_s)
    return series_part(table.values, known, tag, table.times)
