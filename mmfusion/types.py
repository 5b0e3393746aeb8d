"""The types that every room shares. Shapes are written with these letters, here and in all docstrings:

    B samples of a batch        N patches of a part (padded)     K answers
    P parts of one modality     M tokens of a part (padded)      V vocabulary pieces
    R packed text rows          L pieces in a row                D width, E width of the shared embedding space
    T time steps                C channels                       H heads

Dimensions stand in the order in which they are indexed: `values[P, N, *]`, `hidden[R, L, D]`.
Boolean masks are True where something is real. Units stand in names: `_s` seconds, `_hz` hertz, `_px` pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor

from mmfusion.errors import UserError

Modality = Literal["image", "audio", "sensor", "video", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "audio", "sensor", "video", "text")

MEASURABLE = 1e12  # no value, time or rate of a sample is larger; its square is still a float32
IGNORE = -100  # the label that no loss reads, as in torch.nn.functional.cross_entropy


class DataError(UserError):
    """Bad data that stops the run; the message names the shard, the key and the field, and says what to do."""


class SkipSample(Exception):
    """Bad data that costs one sample; `reason` is a short, countable name such as `truncated image`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


# ---------------------------------------------------------------------------------------------- on disk and in memory


@dataclass(frozen=True, kw_only=True)
class Part:
    """One picture, clip, series, video or text of a sample; the field names are those of `<key>.json`.

    `file` is what follows the key in the member's name (`fr.ogg`); `data` holds its bytes once read and its array once
    decoded: image uint8 [height, width, 3], audio float32 [T] at `rate_hz`, sensor float32 [T, C] with NaN where
    nothing was measured and `times_s` float64 [T].
    """

    type: Modality
    file: str | None = None
    text: str | None = None
    lang: str | None = None
    role: Literal["user", "assistant"] | None = None
    kind: str | None = None
    start_s: float = 0.0
    rate_hz: float | None = None
    times: str | None = None
    place: str | None = None
    subject: str | None = None
    speaker: str | None = None
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    grid: tuple[tuple[float, float], ...] = ()
    data: bytes | np.ndarray | None = field(default=None, repr=False, compare=False)
    times_s: bytes | np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One candidate answer of a preference: its parts and its score."""

    parts: tuple[Part, ...]
    score: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example: any subset of modalities under one key.

    A preference has `answers` to what its `parts` ask (`prompt` on disk), an open prompt none of them but perhaps a
    `check`: the right wordings, one a line. Other samples have None.
    """

    key: str
    url: str = ""
    parts: tuple[Part, ...] = ()
    answers: tuple[Answer, ...] | None = None
    check: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    licence: str | None = None

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts, and those of every answer, in reading order."""
        return self.parts + tuple(part for answer in self.answers or () for part in answer.parts)

    @property
    def is_conversation(self) -> bool:
        """Whether its parts are turns: then its texts are questions and answers, and none stands for the sample."""
        return self.answers is not None or any(part.role for part in self.parts)

    def of(self, modality: Modality) -> tuple[Part, ...]:
        """The parts of one modality, in reading order."""
        return tuple(part for part in self.parts if part.type == modality)


# ------------------------------------------------------------------------------------------------ what models read


class _Movable:
    """A dataclass of tensors that moves as one; what is no tensor is kept as it is."""

    def _map(self, move: Callable[[Tensor], Tensor]) -> Self:
        def visit(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, _Movable):
                return value._map(move)
            if isinstance(value, dict):
                return {name: visit(item) for name, item in value.items()}
            return value

        changes = {f.name: visit(getattr(self, f.name)) for f in dataclasses.fields(cast("Any", self))}
        return dataclasses.replace(cast("Any", self), **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class Channels(_Movable):
    """What each channel of a sensor part is, as numbers that an encoder can read: the `description` of Patches.

    `name[P, C]` int64, a stable hash of (name, unit, place); `grid[P, C, 2]` row and column on a tactile array (0 where
    there is none); `valid[P, C]`, False for padding.
    """

    name: Tensor
    grid: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Patches(_Movable):
    """Parts of one modality cut into pieces, padded to the longest part.

    values[P, N, *]: image [P, N, cells·(3 + orientations)] float; audio
    [P, N, (frames + 1)·bands]; sensor [P, N, C, S, 2] (value, observed);
    text [P, N] int64 piece ids. coords[P, N, 4] float32: time_s, row, column, channel; physical where the modality has
    it, grid cells in a picture, the position (in `column`) in a text. valid[P, N]. owner[P] int64: the sample of the
    batch, -1 for the dummy part that stands in where a modality is absent.
    """

    values: Tensor
    coords: Tensor
    valid: Tensor
    owner: Tensor
    description: Channels | None = None


@dataclass(frozen=True)
class Tokens(_Movable):
    """What an encoder makes of Patches: x[P, M, D], coords[P, M, 4], valid[P, M], owner[P]."""

    x: Tensor
    coords: Tensor
    valid: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Rows(_Movable):
    """Text packed into rows of equal length.

    ids, labels, document, position, slot, answer [R, L] int64. labels are already shifted (labels[r, i] is what
    position i must say) and IGNORE where no loss is read; document is an index into the D documents, -1 for padding;
    position counts within the document; slot is an index into all valid tokens of the batch (streams in the order of
    MODALITIES without text, parts in order, valid tokens in order), -1 where the piece is text. owner[D] sample of each
    document.

    A document may end in several answers to one prompt, each of which sees the prompt and itself: answer is an index
    into the K answers, -1 for a prompt that several share, and for padding; where there is one it has the whole
    document. of[K] document of each answer, those of one side by side; score[K] its score (1 where there is none).
    """

    ids: Tensor
    labels: Tensor
    document: Tensor
    position: Tensor
    slot: Tensor
    answer: Tensor
    owner: Tensor
    of: Tensor
    score: Tensor


@dataclass(frozen=True)
class Batch(_Movable):
    """A micro-batch. streams hold only modalities that an encoder of the model reads.

    concept[B] int64: a stable hash of the concept label, equal = positives for each other; without a label the position
    in the global order. seeds[B] int64: of (seed, position), the only randomness that objectives may use in `views`.
    counts: per objective, the sum over the step's micro-batches of all ranks (filled by the loader before the first).
    skipped: how many samples of the stripe were holes, by reason. sources: where each of the samples is from. checks:
    what is right to say to each of the samples that is an open prompt. visit: (i, n), this is step i, from 0, of n in a
    row that meet the same samples.
    """

    streams: dict[Modality, Patches]
    rows: Rows
    keys: tuple[str, ...]
    concept: Tensor
    seeds: Tensor
    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    checks: tuple[str | None, ...] = ()
    visit: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch. embeddings[m][P, E] have unit norm, row p belongs to tokens[m].owner[p].

    hidden[R, L, D] is the decoder's last normed state; logits = hidden @ unembedding.T, unembedding[V, D].
    """

    tokens: dict[Modality, Tokens]
    embeddings: dict[Modality, Tensor]
    hidden: Tensor
    unembedding: Tensor


@dataclass(frozen=True)
class Loss:
    """A loss as sum and count, so that ranks and accumulation never change the mean.

    For the log alone, `each[n]` are the addends and `owner[n]` the sample of the batch that each belongs to, -1 for one
    that is not counted. What is not `trained` is for the log alone too.
    """

    sum: Tensor
    count: int
    each: Tensor | None = None
    owner: Tensor | None = None
    trained: bool = True


class Objective(Protocol):
    """What the training module asks of an objective (an nn.Module that owns what is learned for it).

    `modalities` are those whose tokens it reads; whose embeddings, where these are fewer, it says in `embeddings`: what
    nobody reads is not trained. `views` is what it makes of a batch before the forward; the count is known from the
    batch as it came.
    """

    modalities: tuple[Modality, ...]

    def views(self, batch: Batch) -> Batch: ...

    def count(self, batch: Batch) -> int: ...

    def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]: ...
