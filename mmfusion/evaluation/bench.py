"""What every task works on: the samples of a split, decoded parts, embeddings, each made once and kept.

A task asks for what it needs and raises `Lacking` where the shards have none of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from mmfusion.data.decode import decode_part
from mmfusion.data.series import array_of, base_units
from mmfusion.data.shards import ShardSet, read_manifest
from mmfusion.evaluation.statistics import Statistic
from mmfusion.types import Modality, Part, Sample, SkipSample

Split = Literal["train", "validation", "test"]


class Lacking(Exception):
    """The shards hold nothing that this task could be asked on; the message says what is missing."""


class Embedder(Protocol):
    """What evaluation asks of a model; `mmfusion.api.Model` is one."""

    @property
    def modalities(self) -> tuple[Modality, ...]: ...

    def embed_parts(self, parts: Sequence[Part]) -> np.ndarray:
        """Decoded parts of one modality -> float32 [n, E] of unit norm."""
        ...

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        """What the decoder says, greedily, in `language` about each prompt's decoded parts."""
        ...


@dataclass(frozen=True)
class Outcome:
    """One metric of a task, example by example: values[n], clusters[n], each baseline's values[n], and chance.

    `subset` names the modalities it was asked with, where a task is asked with several subsets.
    """

    metric: str
    values: np.ndarray
    clusters: Sequence[str]
    chance: float
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    statistic: Statistic = "mean"
    subset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retrieval:
    """Queries against candidates: scores[Q, C] cosines, right[Q, C] bool; what the report draws its examples from.

    `queries` are the parts asked about, `candidates` the names in reading order, `pictures` what they name if the
    candidates are pictures.
    """

    queries: tuple[Part, ...]
    keys: tuple[str, ...]
    clusters: tuple[str, ...]
    candidates: tuple[str, ...]
    scores: np.ndarray
    right: np.ndarray
    pictures: tuple[Part, ...] = ()

    def ranks(self) -> np.ndarray:
        """The rank [Q] of the best right candidate, 1 is first; a tie with a wrong one counts as lost."""
        best = np.where(self.right, self.scores, -np.inf).max(1, keepdims=True)
        return 1 + ((self.scores >= best) & ~self.right).sum(1)

    def recall(self, k: int) -> np.ndarray:
        """1 where a right candidate is among the first k, else 0, [Q]."""
        return (self.ranks() <= k).astype(np.float64)

    def only(self, rows: Sequence[int] | np.ndarray) -> Retrieval:
        """Some of the queries against all candidates."""
        kept = [int(row) for row in rows]
        return Retrieval(
            tuple(self.queries[i] for i in kept),
            tuple(self.keys[i] for i in kept),
            tuple(self.clusters[i] for i in kept),
            self.candidates,
            self.scores[kept],
            self.right[kept],
            self.pictures,
        )

    def chance(self, k: int) -> float:
        """The recall at k of candidates in random order, in the mean over queries."""
        return float(np.mean([chance_of_recall(int(n), self.right.shape[1], k) for n in self.right.sum(1)]))


def chance_of_recall(right: int, candidates: int, k: int) -> float:
    """The probability that k draws without replacement from `candidates` meet one of the `right` ones."""
    missed = 1.0
    for drawn in range(min(k, candidates)):
        missed *= max(0, candidates - right - drawn) / (candidates - drawn)
    return 1 - missed


@dataclass(frozen=True)
class Result:
    """What a task yields: its metrics, and the retrieval behind them where there is one to look at."""

    outcomes: tuple[Outcome, ...]
    retrieval: Retrieval | None = None


class Bench:
    """A model before the shards of `root`; `split` is what it is tested on, "train" what baselines may learn from."""

    def __init__(self, model: Embedder, root: Path, split: Split = "test") -> None:
        self.model, self.root = model, root
        self.split: Split = split
        self.skipped: Counter[str] = Counter()
        self._samples: dict[str, tuple[tuple[str, Sample], ...]] = {}
        self._decoded: dict[bytes, Part | None] = {}
        self._made: dict[tuple[str, bytes], np.ndarray] = {}

    def samples(self, split: Split, source: str | None = None) -> list[Sample]:
        """The samples of a split, of one source or of all; an empty list where the manifest has none."""
        if split not in self._samples:
            self._samples[split] = tuple(self._read(split))
        return [sample for of, sample in self._samples[split] if source in (None, of)]

    def _read(self, split: Split) -> Iterator[tuple[str, Sample]]:
        if all(entry.split != split for entry in read_manifest(self.root)):
            return
        shards = ShardSet(self.root, split)
        for i in range(len(shards)):
            try:
                yield shards.source_of(i), shards.read(i)
            except SkipSample as error:
                self.skipped[error.reason] += 1

    def concepts(self, split: Split) -> frozenset[str]:
        """The concepts that stand in a split's shards."""
        return frozenset(s.labels["concept"] for s in self.samples(split) if "concept" in s.labels)

    def decoded(self, part: Part) -> Part | None:
        """The part with its array, None where it cannot be decoded; the reason is counted once in `skipped`."""
        if part.data is None or isinstance(part.data, np.ndarray):
            return part
        key = _identity(part)
        if key not in self._decoded:
            try:
                self._decoded[key] = decode_part(part)
                base_units(part)  # of a series: a unit that is not known costs the part here, not the run later
            except SkipSample as error:
                self.skipped[error.reason] += 1
                self._decoded[key] = None
        return self._decoded[key]

    def embed(self, parts: Sequence[Part]) -> np.ndarray:
        """Decoded parts of one modality -> [n, E]."""
        return self._once("model", self.model.embed_parts, parts)

    def features(self, function: Callable[[Sequence[np.ndarray]], np.ndarray], pictures: Sequence[Part]) -> np.ndarray:
        """A baseline's features of decoded pictures, [n, F]."""
        return self._once(function.__name__, lambda new: function([array_of(p) for p in new]), pictures)

    def _once(self, name: str, function: Callable[[Sequence[Part]], np.ndarray], parts: Sequence[Part]) -> np.ndarray:
        """One row for each part; equal parts are computed once, however often they are asked for."""
        keys = [(name, _identity(part)) for part in parts]
        new = {key: part for key, part in zip(keys, parts, strict=True) if key not in self._made}
        if new:
            self._made.update(zip(new, function(list(new.values())), strict=True))
        return np.stack([self._made[key] for key in keys])

    def embed_names(self, names: Sequence[str], language: str) -> np.ndarray:
        """Plain names -> [n, E]."""
        return self.embed([Part(type="text", text=name, lang=language) for name in names])

    def require(self, *modalities: Modality) -> None:
        """Raise Lacking if the model does not read one of these."""
        if missing := [m for m in modalities if m not in self.model.modalities]:
            raise Lacking(f"the model reads no {' and no '.join(missing)}")


def text_of(sample: Sample, language: str) -> str | None:
    """The sample's text in a language; a text without one counts as English."""
    return next((p.text for p in sample.of("text") if p.text and (p.lang or "en") == language), None)


def same_pictures(pictures: Sequence[Part]) -> list[int]:
    """A number for each decoded picture, equal for pictures that are equal pixel by pixel."""
    numbers: dict[tuple[object, bytes], int] = {}
    arrays = [array_of(picture) for picture in pictures]
    return [numbers.setdefault((array.shape, array.tobytes()), len(numbers)) for array in arrays]


def _identity(part: Part) -> bytes:
    digest = hashlib.blake2b(repr(part).encode(), digest_size=16)  # repr leaves out the arrays
    for data in (part.data, part.times_s):
        if isinstance(data, np.ndarray):
            digest.update(repr((data.shape, data.dtype)).encode() + np.ascontiguousarray(data).tobytes())
        elif data is not None:
            digest.update(data)
    return digest.digest()
