"""Every sample read and every part of it decoded once, so that a bad file is found now and not in training."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmfusion.data.decode import decode_part
from mmfusion.data.format import dump_sample, parse_sample
from mmfusion.data.pack.draft import Draft
from mmfusion.data.pack.keys import Keys
from mmfusion.data.repeats import digests
from mmfusion.types import DataError, Modality, Part, Sample, SkipSample

_THREADS = 16
_EPOCH_S = 1e6  # clocks that begin later than this count from somewhere else than the recording's start


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that cannot be used: `file` is the one that is bad, empty where it is the row itself."""

    row: int
    key: str
    file: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"row {self.row}", self.file, self.reason, self.detail)))


@dataclasses.dataclass(frozen=True)
class Good:
    """A draft that can be packed, with its final key, the digests of its files or texts, what it takes in a tar, its
    modalities, and each series' member and channels with units.
    """

    draft: Draft
    key: str
    digests: tuple[str, ...]
    bytes: int
    kinds: tuple[Modality, ...] = ()
    series: tuple[tuple[str, str], ...] = ()


def check_all(
    drafts: Iterable[Draft], watch: Callable[[Iterable[Good | Skipped]], Iterable[Good | Skipped]]
) -> tuple[list[Good], list[Skipped]]:
    """What can be packed and what cannot, both in the order of the source. `watch` sees each as it is done."""
    good: list[Good] = []
    skipped: list[Skipped] = []
    keys = Keys()
    threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        for done in watch(threads.map(_check, ((draft, keys(draft.key)) for draft in drafts))):
            if isinstance(done, Good):
                good.append(done)
            else:
                skipped.append(done)
    finally:
        threads.shutdown(cancel_futures=True)  # else a Ctrl-C would wait for all that is left
    return good, skipped


def _check(asked: tuple[Draft, str]) -> Good | Skipped:
    draft, key = asked
    size = 0
    file = ""
    parts: list[Part] = []
    try:
        for piece in draft.pieces():
            file = piece.file
            part = piece.read()
            if isinstance(part.data, bytes):
                decode_part(part)
                size += len(part.data)
            parts.append(part)
        file = ""
        parse_sample(key, dump_sample(sample_of(draft, key, parts)))
    except SkipSample as error:
        return Skipped(draft.row, key, file, error.reason, str(error).removeprefix(error.reason).removeprefix(": "))
    except (DataError, ValueError) as error:
        return Skipped(draft.row, key, file, "cannot be packed", str(error))
    series = tuple((part.file or "", _channels(part)) for part in parts if part.type == "sensor")
    same = tuple(digest.hex() for digest in digests(parts))
    return Good(draft, key, same, size, tuple(part.type for part in parts), series)


def _channels(part: Part) -> str:
    return ", ".join(f"{name} ({unit})" for name, unit in zip(part.channels, part.units, strict=True))


def sample_of(draft: Draft, key: str, parts: Sequence[Part], source: str | None = None) -> Sample:
    """The sample of a draft whose parts have been read. Raises SkipSample where it has none."""
    if not parts:
        raise SkipSample("no parts", "the row names no file and no text")
    return Sample(
        key=key, parts=_on_one_clock(parts), labels=draft.labels, source=draft.source or source, licence=draft.licence
    )


def _on_one_clock(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Series that count from 1970 begin with the first of them instead."""
    starts = [part.start_s for part in parts if part.times]
    first = min(starts, default=0.0)
    if abs(first) < _EPOCH_S:
        return tuple(parts)
    return tuple(dataclasses.replace(p, start_s=p.start_s - first) if p.times else p for p in parts)


def refuse_too_many(skipped: Sequence[Skipped], total: int, most: float) -> None:
    """Raises DataError where nothing is left or more than the share `most` was skipped."""
    if not skipped or (len(skipped) < total and len(skipped) <= most * total):
        return
    reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(s.reason for s in skipped).most_common())
    remedy = f"mend them, or allow more with --max-skipped {min(1.0, len(skipped) / total + 0.005):.2f}"
    if len(skipped) == total:
        remedy = "mend them, or name other columns"
    raise DataError(f"{len(skipped)} of {total} rows cannot be used: {reasons}; such as {skipped[0]}; {remedy}")


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """`row, key, file, reason` of every row that was left out."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "key", "file", "reason"))
    writer.writerows((s.row, s.key, s.file, ": ".join(filter(None, (s.reason, s.detail)))) for s in skipped)
    path.write_text(text.getvalue(), encoding="utf-8")
