"""A file to a part: pictures and sounds as they lie, series made one kind of npy."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from mmfusion.data.media import npy_array
from mmfusion.data.pack.draft import SUFFIXES, Piece, modality_of, read_bytes, suffix_of
from mmfusion.data.series import UNITS
from mmfusion.types import DataError, Part, SkipSample

_BRACKETS = re.compile(r"(.*?)\s*[(\[]([^)\]]*)[)\]]\s*")
_TIME = re.compile(r"(?:time|timestamp|t)(?:_(s|ms|us|ns))?", re.IGNORECASE)
_SECONDS: Mapping[str, float] = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
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
DELIMITERS = ",;\t|"


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


def delimiter_of(header: str) -> str:
    """The delimiter that stands most often in a header; a comma where there is none."""
    return max(DELIMITERS, key=header.count)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def series_part(values: np.ndarray, part: Part, tag: str = "", times: np.ndarray | None = None) -> Part:
    """`part` with values[T, C] as a float32 npy and times[T] in seconds, which begin at its `start_s`.

    Raises SkipSample unless every channel has a name and a unit that is understood, and the series times or a rate.
    """
    names, width = part.channels, values.shape[1]
    if len(names) != width:
        said = f"{len(names)} channel names" if names else "no channel names"
        raise SkipSample("channels", f"{said} for {width} channels; give --channels NAME,NAME,…")
    if not part.units:
        raise SkipSample("no unit", f"give --units; known are {', '.join(UNITS)} (1: a number without a unit)")
    units = tuple(_unit(unit) for unit in (part.units * width if len(part.units) == 1 else part.units))
    if len(units) != width:
        raise SkipSample("units", f"{len(units)} units for {width} channels; give one for all or one for each")
    made = dataclasses.replace(part, file=f"{tag}npy", units=units, data=npy(values.astype(np.float32)))
    if times is None:
        if part.rate_hz is None:
            raise SkipSample("no times", "neither a column time_s nor a rate; give --rate-hz")
        return made
    first = float(times[0]) if len(times) and np.isfinite(times[0]) else 0.0
    clock = {"times": f"{tag}times.npy", "times_s": npy(times.astype(np.float64) - first)}
    return dataclasses.replace(made, rate_hz=None, start_s=part.start_s + first, **clock)


def _unit(unit: str) -> str:
    unit = _SPELLINGS.get(unit, unit)
    if unit not in UNITS:
        raise SkipSample("unknown unit", f"{unit!r}; known are {', '.join(UNITS)} (1: a number without a unit)")
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


# ----------------------------------------------------------------------------------------------------------------- CSV


def _from_csv(data: bytes, part: Part, tag: str) -> Part:
    """A header of `name`, `name (unit)` or `name [unit]`; one column may be the time, the others are channels."""
    table = _table(data)
    named = [_named(column) for column in table.column_names]
    times = None
    channels: dict[str, tuple[int, str]] = {}
    for i, (name, unit) in enumerate(named):
        if match := _TIME.fullmatch(name):
            times = _seconds(table.column(i), unit or match[1] or "s") if times is None else times
        else:
            channels[name] = (i, unit)
    wanted = part.channels or tuple(channels)
    if missing := [name for name in wanted if name not in channels]:
        raise SkipSample("channels", f"no column {missing[0]!r}, only {', '.join(channels)}")
    columns = [_numbers(table.column(channels[name][0]), name) for name in wanted]
    if not columns:
        raise SkipSample("channels", "no column of numbers beside the time")
    given = part.units * len(wanted) if len(part.units) == 1 else part.units or ("",) * len(wanted)
    units = tuple(channels[name][1] or unit for name, unit in itertools.zip_longest(wanted, given, fillvalue=""))
    known = dataclasses.replace(part, channels=wanted, units=units if all(units) else ())
    return series_part(np.stack(columns, axis=1), known, tag, times)


def _table(data: bytes) -> pa.Table:
    header = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
    try:
        parse = pa_csv.ParseOptions(delimiter=delimiter_of(header))
        table = pa_csv.read_csv(
            io.BytesIO(data), parse_options=parse, read_options=pa_csv.ReadOptions(use_threads=False)
        )
    except pa.ArrowInvalid as error:
        raise SkipSample("bad csv", str(error).splitlines()[0][:200]) from None
    names: Sequence[str] = table.column_names
    if len(set(names)) != len(names):
        raise SkipSample("bad csv", f"the column {next(n for n in names if names.count(n) > 1)!r} is there twice")
    if all(re.fullmatch(r"[-+.\deE\s]*", name) for name in names):
        raise SkipSample("no header", "the first line must name the channels: time_s, acc_x (m/s^2), …")
    return table


def _named(column: str) -> tuple[str, str]:
    """`acc_x (m/s^2)` as (acc_x, m/s^2); no unit is an empty one."""
    match = _BRACKETS.fullmatch(column.strip())
    return (match[1], match[2].strip()) if match and match[1] else (column.strip(), "")


def _numbers(column: Any, name: str) -> np.ndarray:
    try:
        return column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise SkipSample("text in a series", f"the column {name!r} holds more than numbers") from None


def _seconds(column: Any, unit: str) -> np.ndarray:
    """float64 [T]; dates are seconds since 1970."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy() * 1e-9
    if unit not in _SECONDS:
        raise SkipSample("unknown unit", f"of time: {unit!r}; known are {', '.join(_SECONDS)}")
    return _numbers(column, "time") * _SECONDS[unit]
