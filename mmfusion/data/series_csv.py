"""A sensor series as a CSV table: a column a channel, its unit in brackets, and a column of times where there is one.

time_ms,acc_x (m/s^2),acc_y (m/s^2),temperature [degC]
0,0.1,9.8,21.5
20,0.2,,21.5
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from mmfusion.types import DataError

_NAME_AND_UNIT = re.compile(r"(.*?)\s*[(\[]([^()\[\]]+)[)\]]")
_TIME = re.compile(r"(?:time|t|timestamp|elapsed|seconds|seconds_elapsed)(?:_(s|ms|us|ns))?", re.IGNORECASE)
_NUMBER = re.compile(r"|Unnamed: \d+|index|id", re.IGNORECASE)  # of the row, as tables are saved with it
_LATEST_S = 1e11  # later than any recording: a clock of 1970 that does not count in seconds
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class Table(NamedTuple):
    """names[C]; units[C], "" where the header names none; values float32 [T, C], NaN where a cell is empty; times
    float64 [T], seconds after the first row, None without a column of them; start_s, that row's own time in seconds.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: np.ndarray
    times: np.ndarray | None
    start_s: float = 0.0


def read_series(data: bytes, channels: Sequence[str] = ()) -> Table:
    """A CSV file's bytes: UTF-8, cells parted by comma, semicolon or tab, decimals with a point, names in line 1.

    The first column `time`, `t`, `timestamp`, `elapsed` or `seconds` holds the times, in seconds or in the unit it
    names (`time_ms`, `t [ms]`), or dates (`2026-03-01 10:00:00.250`, in UTC unless they say otherwise), which are
    seconds since 1970. `channels` are the columns to read; without them it is all that have a unit or are neither a
    clock nor the row's number (`index`, `id`, `Unnamed: 0`, no name at all).
    Raises DataError in one line that names line and column.
    """
    lines = _lines(data)
    _, header = next(lines, (1, []))
    columns = [_name_and_unit(cell) for cell in header]
    _check_header(header, [name for name, _ in columns])
    time = next((i for i, (name, _) in enumerate(columns) if _TIME.fullmatch(name) and name not in channels), None)
    chosen = _chosen(columns, channels, time)
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"line {number}: {len(cells)} cells for {len(header)} columns")
        read = chosen if time is None else [*chosen, time]
        rows.append([_number(cells[i], number, columns[i][0], i == time) for i in read])
    if not rows or not chosen:
        raise DataError(f"{len(rows)} rows of {len(chosen)} channels; a series has one of each at least")
    values = np.array(rows, dtype=np.float64)
    times, start_s = None, 0.0
    if time is not None:
        seconds = _seconds(*columns[time], float(values[0, -1]))
        times, start_s = (values[:, -1] - values[0, -1]) * seconds, float(values[0, -1] * seconds)
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which decoding takes for not measured
        measured = values[:, : len(chosen)].astype(np.float32)
    names, units = zip(*(columns[i] for i in chosen), strict=True)
    return Table(names, units, measured, times, start_s)


def _chosen(columns: Sequence[tuple[str, str]], channels: Sequence[str], time: int | None) -> list[int]:
    """The numbers of the columns that are channels. Raises DataError where one of `channels` is not there."""
    names = [name for name, _ in columns]
    if missing := [name for name in channels if name not in names]:
        raise DataError(f"no column {missing[0]!r}, only {', '.join(filter(None, names))}")
    if channels:
        return [names.index(name) for name in channels]
    return [
        i
        for i, (name, unit) in enumerate(columns)
        if i != time and not _TIME.fullmatch(name) and (unit or not _NUMBER.fullmatch(name))
    ]


def _lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"no CSV table: byte {error.start} is not UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: no CSV table ({error})") from None


def _name_and_unit(cell: str) -> tuple[str, str]:
    found = _NAME_AND_UNIT.fullmatch(cell)
    return (found[1], found[2].strip()) if found else (cell, "")


def _seconds(name: str, unit: str, first: float) -> float:
    found = _TIME.fullmatch(name)
    unit = (found[1].lower() if found and found[1] else "") or unit
    if not unit and abs(first) > _LATEST_S:
        what = "milliseconds" if abs(first) < 1e14 else "microseconds" if abs(first) < 1e17 else "nanoseconds"
        remedy = f"name the column {name}_ms, {name}_us or {name}_ns"
        raise DataError(f"line 2, column {name!r}: {first:.0f} looks like {what} since 1970; {remedy}")
    unit = unit or "s"
    if unit not in _SECONDS:
        raise DataError(f"line 1, column {name!r}: times in {unit!r}; give them in {', '.join(_SECONDS)}")
    return _SECONDS[unit]


def _check_header(header: Sequence[str], names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name and name in names[:i]:
            raise DataError(f"line 1: two columns are named {name!r}")
    if header and all(re.fullmatch(r"[-+.\deE]+", cell) for cell in header):
        raise DataError(f"line 1: {', '.join(header)!r:.60} names no columns; write a header such as acc_x (m/s^2)")


def _number(cell: str, line: int, column: str, needed: bool) -> float:
    """NaN for an empty cell, except where a number is `needed`."""
    try:
        number = _date_s(cell) if needed and cell[4:5] == "-" else float(cell) if cell else np.nan
    except ValueError:
        raise DataError(f"line {line}, column {column!r}: {cell!r:.60} is no number") from None
    if needed and not np.isfinite(number):
        raise DataError(f"line {line}, column {column!r}: {cell!r:.60} is no time")
    return number


def _date_s(cell: str) -> float:
    """Seconds since 1970 of `2026-03-01 10:00:00.250`. Raises ValueError where it is none."""
    date = datetime.fromisoformat(cell)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
