"""What every task works on: the samples of a split, decoded parts, embeddings, each made once and kept.

A task asks for what it needs and raises `Lacking` where the shards have none of it.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from mmfusion.data.cache import Cache
from mmfusion.data.decode import array_bytes, decode_part
from mmfusion.data.series import array_of, base_units, windows
from mmfusion.data.shards import ShardSet, entries_of
from mmfusion.evaluation import baselines
from mmfusion.evaluation.statistics import Statistic
from mmfusion.types import Modality, Part, Sample, SkipSample

Split = Literal["train", "validation", "test"]
T = TypeVar("T")
DECODED_BYTES = 1 << 29  # of decoded parts that are kept
READ_BYTES = 1 << 31  # of undecoded samples of one split, where only some of them are asked for
ROUNDING = 1e-9  # of probabilities
AT_ONCE = 32  # undecoded parts that are decoded together: a dozen megapixels each are 36 MB


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

    def unusable(self, sample: Sample, *, answered: bool) -> str | None:
        """Why a decoded conversation cannot be asked about, or with its answers be scored; None if it can."""
        ...

    def score_answers(self, samples: Sequence[Sample]) -> list[tuple[np.ndarray, ...]]:
        """log p in nats of each answer of decoded preferences, and where the model has adapters without them too."""
        ...

    @property
    def rewards(self) -> bool:
        """Whether it was trained to give rewards."""
        ...

    def reward_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The reward of each answer of decoded preferences, [answers]."""
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


def chance_of_rank(right: np.ndarray, candidates: int) -> float:
    """The median of `Retrieval.ranks` where candidates stand in random order; `right` [Q] are each query's right ones.

    The queries' ranks are distributed differently; the median is of their mixture, halfway where two ranks share it.
    """
    drawn = np.arange(candidates)
    counts, queries = np.unique(right, return_counts=True)
    missed = np.cumprod(np.maximum(0, candidates - counts[:, None] - drawn) / (candidates - drawn), axis=1)
    beyond = np.average(missed, axis=0, weights=queries)  # the probability of a rank beyond 1, 2, …, as it falls
    return float(1 + ((beyond > 0.5 + ROUNDING).sum() + (beyond >= 0.5 - ROUNDING).sum()) / 2)


@dataclass(frozen=True)
class Said:
    """What was answered to a question of a `kind`: its `prompt`'s parts, the answer, all that would have been right."""

    key: str
    kind: str
    prompt: tuple[Part, ...]
    answer: str
    right: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What a task yields: its metrics, and the retrieval or the answers behind them where there are any to look at."""

    outcomes: tuple[Outcome, ...]
    retrieval: Retrieval | None = None
    said: tuple[Said, ...] = ()


class Bench:
    """A model before the shards of `root`; `split` is what it is tested on, "train" what baselines may learn from.

    Parts may be given decoded or as bytes; those as bytes are decoded a few at a time and not kept for long, so that
    large pictures need no more memory than small ones. Raises DataError where `root` holds no shards.
    """

    def __init__(self, model: Embedder, root: Path, split: Split = "test") -> None:
        self.model, self.root = model, root
        self.split: Split = split
        self.entries = entries_of(root, split)
        self.skipped: Counter[str] = Counter()
        self._samples: dict[tuple[str, int | None], tuple[tuple[str, Sample], ...]] = {}
        self._decoded = Cache(DECODED_BYTES)
        self._broken: set[bytes] = set()
        self._beside: dict[Hashable, Any] = {}
        self._embedded: dict[Hashable, np.ndarray] = {}

    def with_model(self, model: Embedder) -> Bench:
        """Another model before the same shards: what was read, decoded and made for baselines is shared."""
        other = copy.copy(self)
        other.model, other._embedded = model, {}
        return other

    def samples(self, split: Split, source: str | None = None, most: int | None = None) -> list[Sample]:
        """The samples of a split, of one source or of all; an empty list where there is no such split.

        With `most`, at most so many of each kind of shard (which has the same modalities), chosen by a hash of the key.
        """
        if (split, most) not in self._samples:
            self._samples[split, most] = tuple(self._read(split, most))
        return [sample for of, sample in self._samples[split, most] if source in (None, of)]

    def _read(self, split: Split, most: int | None) -> Iterator[tuple[str, Sample]]:
        if all(entry.split != split for entry in self.entries):
            return
        shards = ShardSet(self.root, split, self.entries)
        left = READ_BYTES
        for i in range(len(shards)) if most is None else _chosen(shards, most):
            try:
                sample = shards.read(i)
            except SkipSample as error:
                self.skipped[error.reason] += 1
                continue
            yield shards.source_of(i), sample
            left -= sum(len(part.data) for part in sample.parts if isinstance(part.data, bytes))
            if most is not None and left < 0:
                return

    def concepts(self, split: Split) -> frozenset[str]:
        """The concepts that stand in a split's shards."""
        return frozenset(s.labels["concept"] for s in self.samples(split) if "concept" in s.labels)

    def decoded(self, part: Part) -> Part | None:
        """The part with its array, None where it cannot be decoded; the reason is counted once in `skipped`."""
        if part.data is None or isinstance(part.data, np.ndarray):
            return part
        key = identity(part)
        if key in self._broken:
            return None
        try:
            return self._decoded.get(key, lambda: _decode(part), array_bytes)
        except SkipSample as error:
            self.skipped[error.reason] += 1
            self._broken.add(key)
            return None

    def embed(self, parts: Sequence[Part]) -> np.ndarray:
        """Parts of one modality -> [n, E]."""
        return self._rows(self._embedded, "model", self.model.embed_parts, parts)

    def embed_whole(self, parts: Sequence[Part], window_s: float) -> np.ndarray:
        """Parts of one modality -> [n, E]; of a series the mean over its windows, each half overlapping the next."""
        if parts[0].type != "sensor":
            return self.embed(parts)
        series = [part for part in map(self.decoded, parts) if part is not None]
        cuts = [list(windows(part, window_s, window_s / 2)) for part in series]
        rows = np.split(
            self.embed([cut for of_one in cuts for cut in of_one]), np.cumsum([len(of) for of in cuts])[:-1]
        )
        return np.stack([baselines.unit(of_one.mean(0)) for of_one in rows])

    def features(
        self, function: Callable[[Sequence[Part]], Sequence[np.ndarray] | np.ndarray], parts: Sequence[Part]
    ) -> np.ndarray:
        """A baseline's features of parts, [n, F]; `function` takes them decoded."""
        return self._rows(self._beside, function.__name__, function, parts)

    def remember(self, name: Hashable, make: Callable[[], T]) -> T:
        """What a baseline came to, made once for all models; `name` says everything that it depends on."""
        if name not in self._beside:
            self._beside[name] = make()
        return self._beside[name]

    def _rows(
        self,
        made: dict[Hashable, Any],
        name: str,
        function: Callable[[Sequence[Part]], Sequence[np.ndarray] | np.ndarray],
        parts: Sequence[Part],
    ) -> np.ndarray:
        """One row for each part; equal parts are computed once, however often they are asked for."""
        keys = [(name, identity(part)) for part in parts]
        new = {key: part for key, part in zip(keys, parts, strict=True) if key not in made}
        at_once = AT_ONCE if any(isinstance(part.data, bytes) for part in new.values()) else max(1, len(new))
        for first in range(0, len(new), at_once):
            chunk = list(new)[first : first + at_once]
            rows = function([part for key in chunk if (part := self.decoded(new[key])) is not None])
            made.update(zip(chunk, rows, strict=True))
        return np.stack([made[key] for key in keys])

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


def by_hash(key: str) -> bytes:
    """What samples are ordered by where only some are taken: the same ones each time, whatever else is there."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def _chosen(shards: ShardSet, most: int) -> list[int]:
    kinds: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(shards)):
        kinds.setdefault(tuple(sorted(shards.entry_of(i).modalities)), []).append(i)
    order = {i: by_hash(shards.key_of(i)) for of_kind in kinds.values() for i in of_kind}
    chosen = [i for of_kind in kinds.values() for i in sorted(of_kind, key=order.__getitem__)[:most]]
    return sorted(chosen, key=order.__getitem__)


def _decode(part: Part) -> Part:
    decoded = decode_part(part)
    base_units(part)  # of a series: a unit that is not known costs the part here, not the run later
    return decoded


def identity(part: Part) -> bytes:
    """Equal for equal parts."""
    digest = hashlib.blake2b(repr(part).encode(), digest_size=16)  # repr leaves out the arrays
    for data in (part.data, part.times_s):
        if isinstance(data, np.ndarray):
            digest.update(repr((data.shape, data.dtype)).encode() + np.ascontiguousarray(data).tobytes())
        elif data is not None:
            digest.update(data)
    return digest.digest()
