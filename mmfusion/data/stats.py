"""What a set of shards holds, counted in one pass over it: from headers, or from all that decoding finds."""

from __future__ import annotations

import dataclasses
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mmfusion.data.batching import longest_document
from mmfusion.data.decode import decode_part, duration_and_rate, size_px
from mmfusion.data.repeats import digests
from mmfusion.data.series import base_units
from mmfusion.data.shards import ShardSet
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import MODALITIES, DataError, Part, Sample, SkipSample

UNKNOWN = "not stated"
STOPS = "stops a run"  # the reason of a part that no run goes on after
_SPLITS = {"train": 0, "validation": 1, "test": 2}  # the order in which they are shown
BINS = 24
COMMONEST = 12  # classes of a label that are named


@dataclasses.dataclass(frozen=True)
class Measured:
    """The header of a part: the longer side and the area of a picture, or the length of a sound or series."""

    longer_px: int = 0
    megapixels: float = 0.0
    seconds: float = 0.0
    rate_hz: float | None = None


class Stats:
    """Counts sample by sample; `numbers()` is what was counted, as plain JSON values.

    `tokenizer` counts texts in pieces too. `decode` opens every part wholly, and so finds what its header hides.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, decode: bool = False) -> None:
        self.tokenizer, self.decode = tokenizer, decode
        self.cells: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.tables: dict[str, Counter[str]] = defaultdict(Counter)
        self.sizes: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.documents = array("l")  # pieces of the longest that training makes of each sample
        self.labels: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.people: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.twice: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.first: dict[str, str] = {}  # a reason to skip, `key`, `bytes` or `texts` -> where it was met first
        self._split_of: dict[str, dict[bytes, str]] = defaultdict(dict)

    def add(self, shards: ShardSet, i: int) -> None:
        """Counts one sample: what it holds, or why it cannot be used. Raises DataError if its shard cannot be read."""
        entry, key = shards.entry_of(i), shards.key_of(i)
        self._met("key", key.encode(), entry.split, key)
        source = entry.source if entry.sources else UNKNOWN
        try:
            sample = shards.read(i)
            source = sample.source or UNKNOWN
            measured = [self._measure(part) for part in sample.all_parts]
        except SkipSample as error:
            self.tables["skipped"][error.reason] += 1
            self.first.setdefault(error.reason, f"{entry.file}: {key}")
            self.cells[entry.split, source]["samples"] += 1
            self.cells[entry.split, source]["skipped"] += 1
            return
        self._count(self.cells[entry.split, source], sample, measured)
        self._describe(sample, entry.split)
        if self.tokenizer is not None:
            self.documents.append(longest_document(sample, self.tokenizer))
        same = "bytes" if any(isinstance(part.data, bytes) for part in sample.all_parts) else "texts"
        for digest in digests(sample.all_parts):
            self._met(same, digest, entry.split, key)

    def _met(self, what: str, name: bytes, split: str, key: str) -> None:
        first = self._split_of[what].setdefault(name, split)
        if first != split:
            self.twice[what][first, split] += 1
            self.first.setdefault(what, key)

    def _measure(self, part: Part) -> Measured:
        """Raises SkipSample."""
        try:
            if self.decode:
                decode_part(part)
            if part.type == "image":
                width, height = size_px(part)
                return Measured(longer_px=max(width, height), megapixels=width * height / 1e6)
            if part.type in ("audio", "sensor"):
                base_units(part)
                seconds, rate_hz = duration_and_rate(part)
                return Measured(seconds=seconds, rate_hz=rate_hz)
        except DataError as error:
            raise SkipSample(STOPS, str(error)) from None
        return Measured()

    def _count(self, cell: dict[str, float], sample: Sample, measured: Iterable[Measured]) -> None:
        cell["samples"] += 1
        for part, size in zip(sample.all_parts, measured, strict=True):
            cell[part.type] += 1
            cell["bytes"] += len(part.data) if isinstance(part.data, bytes) else len((part.text or "").encode())
            if part.type == "image":
                cell["megapixels"] += size.megapixels
                self.sizes["image_px"].append(size.longer_px)
            elif part.type in ("audio", "sensor"):
                cell[f"{part.type}_hours"] += size.seconds / 3600
                self.sizes[f"{part.type}_s"].append(size.seconds)
                self.tables[f"{part.type} rates"][f"{size.rate_hz:,.6g} Hz" if size.rate_hz else "own times"] += 1
        held = {part.type for part in sample.all_parts}
        self.tables["combinations"][" + ".join(m for m in MODALITIES if m in held)] += 1

    def _describe(self, sample: Sample, split: str) -> None:
        if sample.answers is not None:
            self.tables["kinds"]["preference"] += 1
        elif sample.is_conversation:
            self.tables["kinds"]["conversation"] += 1
        self.tables["licences"][sample.licence or UNKNOWN] += 1
        for name, value in sample.labels.items():
            self.labels[name][split][value] += 1
        for part in sample.all_parts:
            if part.type == "text":
                self._text(part.text or "", part.lang)
            elif part.lang:
                self.tables["spoken languages"][part.lang] += 1
            for channel, unit in zip(part.channels, part.units, strict=True):
                self.tables["channels"][f"{channel} ({unit})"] += 1
            for role, who in (("subject", part.subject), ("speaker", part.speaker)):
                for name in {who, sample.labels.get(role)} - {None}:
                    self.people[role][str(name)].add(split)

    def _text(self, text: str, lang: str | None) -> None:
        self.tables["languages"][lang or UNKNOWN] += 1
        self.sizes["text_characters"].append(len(text))
        if self.tokenizer is not None:
            self.sizes["text_pieces"].append(len(self.tokenizer.encode(text)))

    def numbers(self) -> dict[str, Any]:
        """All counts: `table` by split and source, `total`, tables of counts, `sizes`, `labels`, `people`."""
        at = sorted(self.cells, key=lambda cell: (_SPLITS.get(cell[0], len(_SPLITS)), cell))
        total: dict[str, float] = defaultdict(float)
        for cell in self.cells.values():
            for name, count in cell.items():
                total[name] += count
        return {
            "total": _rounded(total),
            "table": [
                {"split": split, "source": source, **_rounded(self.cells[split, source])} for split, source in at
            ],
            **{name.replace(" ", "_"): dict(table.most_common()) for name, table in sorted(self.tables.items())},
            "sizes": {name: spread(np.array(values)) for name, values in sorted(self.sizes.items())},
            "labels": {name: label_numbers(by_split) for name, by_split in self.labels.items()},
            "people": {role: len(found) for role, found in self.people.items()},
        }


def _rounded(cell: Mapping[str, float]) -> dict[str, float]:
    return {name: int(count) if count == int(count) else round(count, 6) for name, count in cell.items()}


def spread(values: np.ndarray) -> dict[str, Any]:
    """Range, median and histogram of positive sizes; its bins are even, or even in the logarithm of a wide range."""
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > 20 * low
    edges = np.geomspace(low, high, BINS + 1) if log else np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    histogram = {"edges": edges.tolist(), "counts": counts.tolist(), "log": log}
    return {"n": len(values), "min": low, "median": float(np.median(values)), "max": high, "histogram": histogram}


def label_numbers(by_split: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """The classes of one label: how many, the commonest, the rarest one's count, and those of one split alone."""
    counts = sum(by_split.values(), Counter[str]())
    return {
        "classes": len(counts),
        "samples": counts.total(),
        "commonest": dict(counts.most_common(COMMONEST)),
        "rarest": min(counts.values()),
        "by_split": {split: len(found) for split, found in by_split.items()},
        "in_this_split_alone": {
            split: sum(counts[value] == n for value, n in found.items()) for split, found in by_split.items()
        },
    }
