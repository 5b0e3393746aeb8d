"""Files and texts to a Parquet table of embeddings, written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.api import Model
from mmfusion.data.pack.draft import modality_of as by_name
from mmfusion.inputs import Description, InputError, part_of, regular
from mmfusion.progress import tracked
from mmfusion.types import Modality, Part

CHUNK = 16  # files decoded at once: as many photographs are half a gigabyte
PARQUET = b"PAR1"
SIGNATURES: Mapping[bytes, Modality] = {
    b"\x89PNG": "image",
    b"\xff\xd8\xff": "image",
    b"fLaC": "audio",
    b"OggS": "audio",
    b"ID3": "audio",
    b"\x93NUMPY": "sensor",
}
"""How files begin whose names do not say what they are."""


def modality_of(path: Path) -> Modality:
    """What a file is, by its suffix, else by its first bytes. Raises InputError for what is neither."""
    if (named := by_name(path)) is not None:
        return named
    head = _head(path)
    if head[:4] == b"RIFF":
        return "image" if head[8:] == b"WEBP" else "audio"
    for signature, modality in SIGNATURES.items():
        if head.startswith(signature):
            return modality
    raise InputError("no picture, sound or series that is known (png, jpeg, webp, wav, flac, ogg, mp3, csv, npy)")


def check_place(out: Path, files: Sequence[Path]) -> None:
    """Raises InputError where no table can be written or something else would be lost, before anything is computed."""
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
    if os.path.realpath(out) in map(os.path.realpath, files):
        raise InputError(f"--out {out}: is one of the files to embed; give another name")
    try:
        known = not out.exists() or _head(out).startswith(PARQUET)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be read ({error.strerror})") from error
    if not known:
        raise InputError(f"--out {out}: is there and no Parquet file; give another name, or remove it")


def _head(path: Path) -> bytes:
    with regular(path).open("rb") as file:
        return file.read(12)


def write(out: Path, model: Model, files: Sequence[Path], texts: Sequence[str], described: Mapping[str, Any]) -> int:
    """A row for each file and text, in their order; what cannot be read is named on stderr. Returns how many were not.

    Columns: path and text (null for the other kind), modality, embedding float32 [E]. The schema's metadata names the
    model by the sha256 of its weights and its step.
    """
    todo: list[Path | str] = [*files, *texts]
    if not todo:
        raise InputError("embed takes files or texts; got none")
    how = Description(**described)
    chunks = range(0, len(todo), CHUNK)
    counts = Counter[str]()
    draft = out.with_name(f".{out.name}.draft")
    try:
        with ExitStack() as opened:
            table: pq.ParquetWriter | None = None
            for start in tracked(chunks, f"embedding, {CHUNK} at once", len(chunks)):
                rows = list(_rows(model, todo[start : start + CHUNK], how))
                counts.update(part.type for _, part, _ in rows)
                if rows and table is None:
                    schema = _schema(model, len(rows[0][2]))
                    table = opened.enter_context(pq.ParquetWriter(draft, schema))
                if rows and table is not None:
                    table.write_batch(pa.RecordBatch.from_pylist(list(map(_record, rows)), schema=table.schema))
        if counts:
            draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    left_out = len(todo) - counts.total()
    made = ", ".join(f"{count} {modality}" for modality, count in counts.items()) or "nothing"
    where = f" -> {out}" if counts else ", no file was written"
    print(f"embedded {made}{where}{f'; {left_out} of {len(todo)} left out' if left_out else ''}")
    return left_out


def _rows(model: Model, items: Sequence[Path | str], how: Description) -> Iterator[tuple[Path | str, Part, np.ndarray]]:
    """Each item that can be read with its part and embedding."""
    parts: dict[int, Part] = {}
    for i, item in enumerate(items):
        with _named(item):
            parts[i] = part_of("text" if isinstance(item, str) else modality_of(item), item, "input", how)
    rows: dict[int, np.ndarray] = {}
    for modality in {part.type for part in parts.values()}:
        group = [i for i, part in parts.items() if part.type == modality]
        try:
            rows.update(zip(group, model.embed_parts([parts[i] for i in group]), strict=True))
        except InputError:  # one of them spoils the batch
            for i in group:
                with _named(items[i]):
                    rows[i] = model.embed_parts([parts[i]])[0]
    return ((items[i], parts[i], rows[i]) for i in sorted(rows))


@contextmanager
def _named(item: Path | str) -> Iterator[None]:
    """What goes wrong with one item is said, and no more."""
    try:
        yield
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix("input: ")
        print(f"left out: {_utf8(item)}: {reason}", file=sys.stderr)


def _schema(model: Model, width: int) -> pa.Schema:
    columns = {
        "path": pa.string(),
        "text": pa.string(),
        "modality": pa.string(),
        "embedding": pa.list_(pa.float32(), width),
    }
    lineage = model.lineage
    about = {"mmfusion.sha256": lineage["files"]["model.safetensors"], "mmfusion.step": str(lineage.get("step", ""))}
    return pa.schema(columns.items(), metadata=about)


def _record(row: tuple[Path | str, Part, np.ndarray]) -> dict[str, Any]:
    item, part, embedding = row
    named = {"text": item} if isinstance(item, str) else {"path": _utf8(item)}
    return {"path": None, "text": None, **named, "modality": part.type, "embedding": embedding}


def _utf8(item: Path | str) -> str:
    """A name that can be printed and stored: bytes of it that are no UTF-8 as `\\udc..`."""
    return str(item).encode("utf-8", "backslashreplace").decode()
