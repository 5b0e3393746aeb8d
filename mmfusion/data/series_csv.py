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
_TIME = re.compile(r"(?:time|t|timestamp)(?:_(s|ms|us|ns))?", re.IGNORECASE)
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


def read_series(data: bytes) -> Table:
    """A CSV file's bytes: UTF-8, cells parted by comma, semicolon or tab, decimals with a point, names in line 1.

    The column `time`, `t` or `timestamp` holds the times, in seconds or in the unit it names (`time_ms`, `t [ms]`),
    or dates (`2026-03-01 10:00:00.250`, in UTC unless they say otherwise), which are seconds since 1970.
    Raises DataError in one line that names line and column.
    """
    lines = _lines(data)
    _, header = next(lines, (1, []))
    columns = [_name_and_unit(cell) for cell in header]
    _check_header(header, [name for name, _ in columns])
    time = next((i for i, (name, _) in enumerate(columns) if _TIME.fullmatch(name)), None)
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"line {number}: {len(cells)} cells for {len(header)} columns")
        rows.append([_number(cell, number, columns[i][0], i == time) for i, cell in enumerate(cells)])
    channels = [i for i in range(len(columns)) if i != time]
    if not rows or not channels:
        raise DataError(f"{len(rows)} rows of {len(channels)} channels; a series has one of each at least")
    values = np.array(rows, dtype=np.float64)
    times, start_s = None, 0.0
    if time is not None:
        seconds = _seconds(*columns[time])
        times, start_s = (values[:, time] - values[0, time]) * seconds, float(values[0, time] * seconds)
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which decoding takes for not measured
        measured = values[:, channels].astype(np.float32)
    names, units = zip(*(columns[i] for i in channels), strict=True)
    return Table(names, units, measured, times, start_s)


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


def _seconds(name: str, unit: str) -> float:
    found = _TIME.fullmatch(name)
    unit = (found[1].lower() if found and found[1] else "") or unit or "s"
    if unit not in _SECONDS:
        raise DataError(f"line 1, column {name!r}: times in {unit!r}; give them in {', '.join(_SECONDS)}")
    return _SECONDS[unit]


def _check_header(header: Sequence[str], names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if not name:
            raise DataError(f"line 1, column {i + 1}: has no name")
        if name in names[:i]:
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
