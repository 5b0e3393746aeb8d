"""The rows of a table to drafts."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from mmfusion.data.pack.columns import Columns, columns_of, is_language, split_names
from mmfusion.data.pack.draft import SPLITS, Draft, Found, Piece, Settings, in_words, slug, text_piece
from mmfusion.data.pack.media import file_piece
from mmfusion.data.pack.table import Row, Table, read_table
from mmfusion.types import DataError, Part, SkipSample

NEEDS = "a .csv, .tsv or .parquet of paths and columns"


def find(source: Path, settings: Settings) -> Found:
    """Every row a sample. Raises DataError on what is wrong with the table as a whole."""
    table = read_table(source)
    columns = columns_of(table, settings, source)
    _check_splits(source, table, columns)
    root = Path(os.path.abspath(settings.root or source.parent))
    if not root.is_dir():
        raise DataError(f"--root {root}: no such folder")
    return Found(
        drafts=(_Maker(table, columns, settings, root)(i) for i in range(len(table.rows))),
        total=len(table.rows),
        notes=[f"{source}: {len(table.rows)} rows", *columns.notes(table, settings.lang)],
        group=f"{' and '.join(columns.groups)}, or file where that is empty" if columns.groups else "file",
    )


def _check_splits(source: Path, table: Table, columns: Columns) -> None:
    if "split" not in columns.fields:
        return
    at = table.columns.index(columns.fields["split"])
    for number, row in enumerate(table.rows, 1):
        if at < len(row) and row[at].lower() not in SPLITS:
            raise DataError(
                f"{source}: row {number}: the split {row[at]!r} is none of train, validation (val, dev), test"
            )


class _Maker:
    """One row to one draft; what is wrong with a row is raised when its pieces are read, so that it is counted."""

    def __init__(self, table: Table, columns: Columns, settings: Settings, root: Path) -> None:
        self.table, self.columns, self.settings, self.root = table, columns, settings, root

    def __call__(self, i: int) -> Draft:
        row = dict(zip(self.table.columns, self.table.rows[i], strict=False))
        said = {name: row[column] for name, column in self.columns.fields.items() if row.get(column)}
        labels = {name: row[column] for name, column in self.columns.labels.items() if row.get(column)}
        shown = labels.get("label") or said.get("concept") or next(iter(labels.values()), "")
        labels |= {name: said[name] for name in ("subject", "speaker") if name in said}
        if concept := said.get("concept") or slug(shown):
            labels["concept"] = concept
        first = next((row[m.column] for m in self.columns.media if row.get(m.column)), f"row-{i + 1}")
        return Draft(
            row=i + 1,
            key=said.get("key") or os.path.splitext(first)[0],
            pieces=lambda: self._pieces(self.table.rows[i], row, said, shown),
            labels=labels,
            split=SPLITS[said["split"].lower()] if "split" in said else None,
            groups=[f"{column}={row[column]}" for column in self.columns.groups if row.get(column)],
            source=said.get("source") or self.settings.source,
            licence=said.get("licence") or self.settings.licence,
        )

    def _pieces(self, cells: Row, row: dict[str, str], said: dict[str, str], shown: str) -> Iterator[Piece]:
        if len(cells) != len(self.table.columns):
            yield _bad("", "another number of cells", f"{len(cells)} for {len(self.table.columns)} columns")
            return
        if not is_language(said.get("lang", "en")):
            yield _bad("", "no language", f"{self.columns.fields['lang']} {said['lang']!r:.60}; write en or pt-BR")
            return
        for medium in self.columns.media:
            if cell := row[medium.column]:
                path = Path(os.path.normpath(self.root / cell))
                roots = (self.root, self.root.resolve())
                if not any(path.is_relative_to(root) for root in roots):  # a link below is its owner's, and followed
                    yield _bad(cell, "path outside", f"not below {self.root}; give --root FOLDER")
                    return
                try:
                    part = _with_fields(self.settings.part(medium.modality), said)
                except ValueError as error:
                    yield _bad(cell, "no number", str(error))
                    return
                yield file_piece(path, part, name=cell, tag=medium.tag)
        texts = [(row[column], lang or said.get("lang") or self.settings.lang) for column, lang in self.columns.texts]
        texts = [(text, lang) for text, lang in texts if text]
        if not texts and shown:
            texts = [(in_words(shown), self.settings.lang)]
        for text, lang in texts:
            yield text_piece(text, lang)


def _bad(file: str, reason: str, detail: str) -> Piece:
    def read() -> NoReturn:
        raise SkipSample(reason, detail)

    return Piece(file=file, read=read)


def _with_fields(part: Part, said: dict[str, str]) -> Part:
    """What the row says of a part. Raises ValueError where a number is none."""
    known: dict[str, Any] = {}
    if "start_s" in said:
        known["start_s"] = _number("start_s", said)
    if part.type == "audio":
        known |= {name: said[name] for name in ("kind", "speaker", "lang") if name in said}
    if part.type == "sensor":
        known |= {name: said[name] for name in ("place", "subject") if name in said}
        known |= {name: split_names(said[name]) for name in ("channels", "units") if name in said}
        if "rate_hz" in said:
            known["rate_hz"] = _number("rate_hz", said)
    return dataclasses.replace(part, **known)


def _number(name: str, said: dict[str, str]) -> float:
    """Raises ValueError."""
    with suppress(ValueError):
        if math.isfinite(number := float(said[name])):
            return number
    raise ValueError(f"{name} {said[name]!r:.60} is no finite number")
