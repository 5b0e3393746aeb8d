"""Shards on disk: the manifest, checking all of them, and reading the samples of a split by number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mmfusion.data.decode import check_series
from mmfusion.data.index import ShardIndex
from mmfusion.types import DataError, Sample, SkipSample

MANIFEST = "manifest.json"
_MAX_OPEN = 256  # file descriptors that one ShardSet keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard in the manifest. `file` is relative to the manifest's folder; `hours` of sound and series together."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str
    modalities: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hours: float = 0.0
    languages: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    licences: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> str:
        """The source that mixing knows this shard by: its only one, or its file's name where it has none or several."""
        return next(iter(self.sources)) if len(self.sources) == 1 else Path(self.file).stem


# --------------------------------------------------------------------------------------------------------- the manifest


def _entry(path: Path, i: int, raw: object) -> ShardEntry:
    def fault(what: str) -> DataError:
        return DataError(f"{path}: shards[{i}] {what}; write it anew with mmfusion.data.writer.write_manifest")

    if not isinstance(raw, dict):
        raise fault("is no object")
    fields = {field.name: field for field in dataclasses.fields(ShardEntry)}
    if unknown := set(raw) - set(fields):
        raise fault(f"has the unknown field {min(unknown)!r}")
    kinds: dict[str, type | tuple[type, ...]] = {"file": str, "split": str, "samples": int, "bytes": int, "sha256": str}
    for name, kind in kinds.items():
        if not isinstance(raw.get(name), kind) or isinstance(raw.get(name), bool):
            raise fault(f"field {name!r} is missing or of the wrong type")
    for name in ("modalities", "languages", "sources", "licences"):
        counts = raw.get(name, {})
        if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
            raise fault(f"field {name!r} is no table of counts")
    if not isinstance(raw.get("hours", 0.0), int | float):
        raise fault("field 'hours' is no number")
    name = raw["file"]
    if "\0" in name:
        raise fault(f"names {name!r}, which is no file name")
    if "://" in name or name.startswith(("pipe:", "file:")):
        raise fault(f"names {name!r}: only files beside the manifest are read, no pipe, no address")
    if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
        raise fault(f"names {name!r}, which lies outside {path.parent}; move the shard into the folder")
    return ShardEntry(**raw)


def read_manifest(root: Path | str) -> list[ShardEntry]:
    """The shards that `root/manifest.json` lists. Raises DataError on a malformed one and on files outside `root`."""
    path = Path(root) / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no manifest here; data.root must be a folder of shards with a {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the manifest cannot be read ({error})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("shards"), list) or not raw["shards"]:
        raise DataError(f"{path}: must be an object with a non-empty list `shards`")
    entries = [_entry(path, i, item) for i, item in enumerate(raw["shards"])]
    files = [entry.file for entry in entries]
    if len(set(files)) != len(files):
        raise DataError(f"{path}: lists {next(f for f in files if files.count(f) > 1)!r} twice")
    return entries


def entries_of(root: Path | str, split: str) -> list[ShardEntry]:
    """The shards that the manifest lists; of a folder without one, all tars at any depth, taken to be of `split`.

    So that tars from elsewhere can be looked at and evaluated as they are; training wants a manifest. Raises DataError
    where there is neither.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the shards")
    if (root / MANIFEST).exists():
        return read_manifest(root)
    tars = sorted(root.rglob("*.tar"))
    if not tars:
        raise DataError(f"{root}: no {MANIFEST} and no .tar in it; make shards with: mmfusion data pack SOURCE {root}")
    return [
        ShardEntry(
            file=tar.relative_to(root).as_posix(),
            split=split,
            samples=len(ShardIndex(tar)),
            bytes=tar.stat().st_size,
            sha256="",
        )
        for tar in tars
    ]


def _present(root: Path, entries: Sequence[ShardEntry]) -> None:
    missing = [entry.file for entry in entries if not (root / entry.file).is_file()]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(entries)} shards are missing: {', '.join(missing)}; put them back"
        )


def verify(root: Path | str) -> dict[str, ShardIndex]:
    """Before training: every shard there, whole, to the byte as the manifest says, and no key in train and elsewhere.

    The index of each shard by its file, for `ShardSet`. Raises DataError, naming all missing shards at once, else the
    first fault. Reads every shard once.
    """
    root = Path(root)
    entries = read_manifest(root)
    _present(root, entries)
    seen: dict[str, ShardEntry] = {}
    indexes: dict[str, ShardIndex] = {}
    for entry in sorted(entries, key=lambda e: e.split != "train"):
        path = root / entry.file
        index = ShardIndex(path)  # before the checksum: its message says what is wrong, not only that something is
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise DataError(f"{path}: differs from the manifest's sha256; fetch it again, or write the manifest anew")
        _as_listed(path, index, entry)
        if "sensor" in entry.modalities:
            _check_series(index)
            index.close()
        indexes[entry.file] = index
        for key in index.keys:
            other = seen.get(key)
            if other is not None and other.split == "train" != entry.split:
                raise DataError(f"{path}: key {key!r} stands in {other.file} ({other.split}) too; a key has one split")
            seen[key] = entry
    return indexes


def _check_series(index: ShardIndex) -> None:
    """Every series as wide as its part list says, before training: a wrong width is a fault of the whole set."""
    for i in range(len(index)):
        try:
            sample = index.read(i)
        except SkipSample:
            continue
        for part in sample.of("sensor"):
            try:
                check_series(part)
            except DataError as error:
                raise DataError(f"{index.path}: key {sample.key!r}: {error}; write the shard anew") from None


def _as_listed(path: Path, index: ShardIndex, entry: ShardEntry) -> None:
    if len(index) != entry.samples:
        raise DataError(f"{path}: holds {len(index)} samples, the manifest says {entry.samples}; write it anew")


class ShardSet:
    """All shards of one split, one after the other, as a sequence of samples that hold bytes.

    `listed` are the shards below `root` of all splits, those of its manifest where none are given; `indexes` of files
    that `verify` has walked already.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        listed: Sequence[ShardEntry] | None = None,
        indexes: Mapping[str, ShardIndex] = MappingProxyType({}),
    ) -> None:
        root = Path(root)
        listed = read_manifest(root) if listed is None else listed
        self.split = split
        self.entries = [entry for entry in listed if entry.split == split]
        if not self.entries:
            splits = sorted({entry.split for entry in listed})
            raise DataError(f"{root}: no shard of split {split!r}; it has {', '.join(splits)}")
        _present(root, self.entries)
        self.shards = [indexes.get(entry.file) or ShardIndex(root / entry.file) for entry in self.entries]
        for shard, entry in zip(self.shards, self.entries, strict=True):
            _as_listed(shard.path, shard, entry)
        self._starts = [0]
        for shard in self.shards:
            self._starts.append(self._starts[-1] + len(shard))
        self._by_source: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(self.entries):
            self._by_source[entry.source].append(number)
        self._open: list[int] = []

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        return self.read(i)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    @property
    def sources(self) -> dict[str, int]:
        """How many samples each source has, in the manifest's order."""
        return {source: sum(len(self.shards[n]) for n in numbers) for source, numbers in self._by_source.items()}

    def _shard_of(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return bisect_right(self._starts, i) - 1

    def entry_of(self, i: int) -> ShardEntry:
        """The manifest's entry of the shard that holds sample i."""
        return self.entries[self._shard_of(i)]

    def source_of(self, i: int) -> str:
        """The source of sample i."""
        return self.entry_of(i).source

    def key_of(self, i: int) -> str:
        """The key of sample i, unread."""
        number = self._shard_of(i)
        return self.shards[number].keys[i - self._starts[number]]

    def locate(self, source: str, index: int) -> int:
        """The number in this set of a source's own sample `index`."""
        for number in self._by_source[source]:
            if index < len(self.shards[number]):
                return self._starts[number] + index
            index -= len(self.shards[number])
        raise IndexError(index)

    def read(self, i: int) -> Sample:
        """Sample i with bytes. Raises SkipSample if it cannot be used, DataError if the shard cannot be read."""
        number = self._shard_of(i)
        shard = self.shards[number]
        if shard._file is None:
            if len(self._open) >= _MAX_OPEN:
                self.shards[self._open.pop(0)].close()
            self._open.append(number)
        return shard.read(i - self._starts[number])
