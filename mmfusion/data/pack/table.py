"""A CSV, TSV or Parquet file to rows of texts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from mmfusion.data.pack.draft import suffix_of
from mmfusion.types import DataError

Row = Sequence[str]

_TABLES = ("csv", "tsv", "parquet")


@dataclass(frozen=True)
class Table:
    """Column names, each once, and rows of cells without space around them, empty where there is nothing."""

    columns: Sequence[str]
    rows: Sequence[Row]

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [row[at] for row in self.rows if at < len(row)]


def is_table(path: Path) -> bool:
    return suffix_of(path) in _TABLES


def read_table(path: Path) -> Table:
    """Raises DataError where it cannot be read, names a column twice, or has no rows. Rows may be shorter or longer."""
    columns, rows = _parquet(path) if suffix_of(path) == "parquet" else _text(path)
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"{path}: the column {twice[0]!r} is there twice; rename one")
    if not rows:
        raise DataError(f"{path}: no rows, only the columns {', '.join(columns) or 'none'}; nothing to pack")
    return Table(columns, rows)


def _text(path: Path) -> tuple[list[str], list[Row]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save the table as UTF-8") from None
    delimiter = "\t" if suffix_of(path) == "tsv" else max(",;\t|", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells = list(_cells(path, lines))
    return (list(cells[0]), cells[1:]) if cells else ([], [])


def _cells(path: Path, lines: Any) -> Iterator[Row]:
    try:
        for line in lines:
            cells = [cell.strip() for cell in line]
            if any(cells):
                yield cells
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num} is no CSV ({error}); mend the quotes") from None


def _parquet(path: Path) -> tuple[list[str], list[Row]]:
    try:
        table = pa_parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file can be read here ({str(error).splitlines()[0]})") from None
    columns = [_column(path, name, table.column(name)) for name in dict.fromkeys(table.column_names)]
    return list(table.column_names), list(zip(*columns, strict=True))


def _column(path: Path, name: str, column: Any) -> list[str]:
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise DataError(f"{path}: the column {name!r} holds {column.type}, not paths or texts; leave it out")
    return [_cell(value) for value in column.to_pylist()]


def _cell(value: object) -> str:
    """Whole numbers as such: Parquet keeps a column of integers with holes as floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
