"""Samples to shards and a manifest: the same bytes every time, never half a file under its final name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from webdataset.writer import TarWriter

from mmfusion.data.decode import duration_s
from mmfusion.data.format import dump_sample, parse_sample
from mmfusion.data.index import EXECUTABLE, ShardIndex
from mmfusion.data.shards import MANIFEST, ShardEntry
from mmfusion.types import DataError, Sample, SkipSample


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends well and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_key(key: str) -> None:
    name = key.rpartition("/")[2]
    if not name or "." in key or key.startswith("/") or "\\" in key or key != key.strip() or name.startswith("__"):
        raise DataError(f"key {key!r}: a key has no dot (what follows one names the member), no edge of space or slash")


def _members(sample: Sample) -> dict[str, bytes]:
    """Everything that a sample stores, `{what follows the key: bytes}`."""
    where = f"key {sample.key!r}"
    _check_key(sample.key)
    try:
        listed = dump_sample(sample)
        if parse_sample(sample.key, listed) != dataclasses.replace(sample, url=""):
            raise DataError(f"{where}: reads back differently; use the types that mmfusion.types.Part names")
    except SkipSample as error:
        raise DataError(f"{where}: would be skipped when read ({error})") from None
    except ValueError as error:
        raise DataError(f"{where}: cannot be written ({error})") from None
    members = {"json": listed}
    for part in sample.all_parts:
        for file, data in ((part.file, part.data), (part.times, part.times_s)):
            if file is None:
                continue
            if not isinstance(data, bytes):
                raise DataError(f"{where}: {file}: a part is stored as encoded bytes, not as {type(data).__name__}")
            if file != file.lower() or not EXECUTABLE.isdisjoint(file.split(".")):
                raise DataError(f"{where}: {file}: member names are lower case and name no code or pickle")
            if members.setdefault(file, data) != data:
                raise DataError(f"{where}: two parts with different bytes are called {file!r}")
    return members


def write_shard(path: Path, samples: Iterable[Sample], *, split: str, root: Path | None = None) -> ShardEntry:
    """Writes one tar through webdataset's TarWriter and returns its entry for the manifest.

    The tar appears under its name only when whole; the same samples give the same bytes. `root` is the manifest's
    folder where that is not the tar's own. Raises DataError on a dot in a key, a key or member twice (upper and lower
    case are one), a sample that would not read back equal, or no sample at all.
    """
    path = Path(path)
    seen: set[str] = set()
    with _atomic(path) as temporary:
        # the time as an integer: a float costs every member an extended header of 1 kB
        with temporary.open("wb") as file, TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            tar.tarstream.encoding = "utf-8"  # not the locale's
            for sample in samples:
                folded = unicodedata.normalize("NFC", sample.key).casefold()
                if folded in seen:
                    raise DataError(f"{path}: key {sample.key!r} is there twice (upper and lower case are one)")
                seen.add(folded)
                tar.write({"__key__": sample.key, **_members(sample)})
        if not seen:
            raise DataError(f"{path}: no sample to write")
        entry = describe_shard(temporary, split=split)
    return dataclasses.replace(entry, file=path.relative_to(root or path.parent).as_posix())


def describe_shard(path: Path, *, split: str, root: Path | None = None) -> ShardEntry:
    """The manifest's entry for a tar that exists, ours or img2dataset's. Reads all; bad samples count as samples."""
    path = Path(path)
    index = ShardIndex(path)
    modalities, languages, sources, licences = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    seconds = 0.0
    for i in range(len(index)):
        try:
            sample = index.read(i)
        except SkipSample:
            continue
        sources.update([sample.source] if sample.source else [])
        licences.update([sample.licence] if sample.licence else [])
        for part in sample.all_parts:
            modalities[part.type] += 1
            languages.update([part.lang] if part.lang else [])
            if part.type in ("audio", "sensor"):
                try:
                    seconds += duration_s(part)
                except SkipSample:
                    continue
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardEntry(
        file=path.relative_to(root or path.parent).as_posix(),
        split=split,
        samples=len(index),
        bytes=path.stat().st_size,
        sha256=digest,
        modalities=dict(sorted(modalities.items())),
        hours=round(seconds / 3600, 4),
        languages=dict(sorted(languages.items())),
        sources=dict(sorted(sources.items())),
        licences=dict(sorted(licences.items())),
    )


def write_manifest(root: Path, entries: Sequence[ShardEntry], made_from: str | None = None) -> Path:
    """Writes `root/manifest.json` anew with exactly these entries, and returns its path.

    `made_from` is a digest of what the shards were made from, where that is other shards and a script.
    """
    root = Path(root)
    for entry in entries:
        if not (root / entry.file).is_file():
            raise DataError(
                f"{root}: the shard {entry.file!r} is not there; entries name files relative to this folder"
            )
    path = root / MANIFEST
    with _atomic(path) as temporary:
        listed: dict[str, object] = {"made_from": made_from} if made_from else {}
        listed["shards"] = [dataclasses.asdict(entry) for entry in entries]
        temporary.write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path
