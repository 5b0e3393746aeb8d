"""Checked drafts to shards in a folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

from mmfusion.data.pack.check import Good, sample_of
from mmfusion.data.pack.draft import Split
from mmfusion.data.pack.keys import Keys
from mmfusion.data.repeats import digests
from mmfusion.data.shards import MANIFEST, ShardEntry
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import DataError, Sample, SkipSample

_LOCK = ".lock"
_ORDER = ("train", "validation", "test")


def write_shards(
    root: Path,
    good: Sequence[Good],
    splits: Sequence[Split],
    *,
    source: str,
    shard_bytes: int,
    watch: Callable[[Iterable[Sample]], Iterable[Sample]],
) -> list[ShardEntry]:
    """`root/<source>/<source>-<split>-<number>.tar` in the order of the drafts, and the manifest.

    A shard holds one source and one split; a new one begins before its media would be more than `shard_bytes`.
    """
    by_shard: dict[tuple[str, Split], list[list[Good]]] = defaultdict(lambda: [[]])
    filled: dict[tuple[str, Split], int] = defaultdict(int)
    for item, split in zip(good, splits, strict=True):
        group = item.draft.source or source, split
        if by_shard[group][-1] and filled[group] + item.bytes > shard_bytes:
            by_shard[group].append([])
            filled[group] = 0
        by_shard[group][-1].append(item)
        filled[group] += item.bytes
    named: dict[str, str] = {}
    keys = Keys()
    entries: list[ShardEntry] = []
    for name, split in sorted(by_shard, key=lambda group: (group[0], _ORDER.index(group[1]))):
        named.setdefault(name, keys(name))
        for number, items in enumerate(by_shard[name, split]):
            path = root / named[name] / f"{named[name]}-{split}-{number:05d}.tar"
            entries.append(write_shard(path, watch(_samples(items, name)), split=split, root=root))
    write_manifest(root, entries)
    return entries


def _samples(items: Iterable[Good], source: str) -> Iterator[Sample]:
    """Read again: what was checked is not kept. Raises DataError where a file is no longer what it was."""
    for item in items:
        try:
            pieces = list(item.draft.pieces())
            parts = [piece.read() for piece in pieces]
        except SkipSample as error:
            raise DataError(f"{item.draft.key}: changed while it was packed ({error}); start again") from None
        files = [piece.file for piece, part in zip(pieces, parts, strict=True) if part.data is not None]
        for file, now, then in zip_longest(files, digests(parts), item.digests):
            if now is None or now.hex() != then:
                raise DataError(f"{file or item.draft.key}: changed while it was packed; start again")
        yield sample_of(item.draft, item.key, parts, source)


# --------------------------------------------------------------------------------------------------------- whole or not


def check_out(source: Path, out: Path, overwrite: bool) -> None:
    """Raises DataError where `out` is in use, or `source` would be lost or met again by packing into it."""
    here, there = source.resolve(), out.resolve()
    if here == there or here.is_relative_to(there) or (here.is_dir() and there.is_relative_to(here)):
        raise DataError(f"{out}: lies in {source} or holds it; choose a folder beside it")
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    if any(out.iterdir()):
        if not overwrite:
            raise DataError(f"{out}: is not empty; choose another folder, or replace a packed one with --overwrite")
        if not (out / MANIFEST).is_file():
            raise DataError(f"{out}: holds no {MANIFEST}, so nothing that was packed; --overwrite leaves it alone")


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well and vanishes when it does not.

    One that a killed process left is emptied; one that a living process fills raises DataError, as does a place where
    nothing, or no more, can be written.
    """
    out = Path(os.path.abspath(out))
    draft, old = out.with_name(f".{out.name}.draft"), out.with_name(f".{out.name}.old")
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        draft.mkdir(parents=True, exist_ok=True)
        lock = (draft / _LOCK).open("w")
    except OSError as error:
        _remove(made)
        raise DataError(f"{out}: cannot write there ({error.strerror}); choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{out}: another process packs it; wait for its end, or choose another folder") from None
        try:
            _clear(draft)
            yield draft
            _replace(draft, out, old)
            made = []
        except OSError as error:
            remedy = "free space there, or choose another folder"
            raise DataError(f"{out}: cannot be written ({error.strerror or error}); {remedy}") from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            _remove(made)


def _clear(draft: Path) -> None:
    for path in draft.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _replace(draft: Path, out: Path, old: Path) -> None:
    """A kill between the two renames leaves the old folder under its hidden name."""
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    (out / _LOCK).unlink()
    shutil.rmtree(old, ignore_errors=True)


def _remove(made: Iterable[Path]) -> None:
    for folder in made:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
