"""Samples cut into patches, to a Batch: parts sorted and padded, documents laid out and packed into rows.

A document is a conversation; a caption is one of a single turn. From left to right, for each turn,

    <|begin|>  what is asked  <|assistant|>  the answer's pieces  <|end|>

where all turns but the first have <|user|> in the place of <|begin|>, and what is asked is any sequence of pieces and
of parts, a placeholder for each of a part's tokens. A loss is read on the answers and their ends alone: `labels` at a
place is what the next place must say. CHAT_TEMPLATE says the same to other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmfusion.data.patchify import PartPatches, Patchify
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import IGNORE, MODALITIES, Batch, Channels, Modality, Patches, Rows, Sample, SkipSample

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
TOO_LONG = "document longer than data.pipeline.row_length"  # the reason for which it costs its sample
ROW_LENGTH = 128  # pieces: what `data.pipeline.row_length` of data=shards is without a word
TOKENS: Mapping[Modality, int] = {"image": 9, "audio": 18, "sensor": 16}  # of a part at most, as model=tiny cuts it
_RARE = 0.005  # of the samples may be too long: half of what `data.max_skipped_fraction` allows for all reasons


@dataclass(frozen=True)
class Turn:
    """A question and its answer, left open for the decoder to go on where there is none.

    `asked` are numbers into `Prepared.parts` and, in tuples, piece ids; `answer` are piece ids.
    """

    asked: tuple[int | tuple[int, ...], ...]
    answer: tuple[int, ...] | None


@dataclass(frozen=True)
class Document:
    """What the decoder reads and says about a sample. Only the last turn may be open.

    `answers` are several (answer, score) to an open last turn.
    """

    turns: tuple[Turn, ...]
    answers: tuple[tuple[tuple[int, ...], float], ...] = ()

    @property
    def parts(self) -> tuple[int, ...]:
        """The numbers of all parts that it shows, in order."""
        return tuple(item for turn in self.turns for item in turn.asked if isinstance(item, int))


def single(parts: Sequence[int], prompt: Sequence[int], answer: Sequence[int] | None) -> Document:
    """The document of one turn that shows `parts` and then asks `prompt`."""
    asked = (*parts, tuple(prompt)) if prompt else tuple(parts)
    return Document((Turn(asked, None if answer is None else tuple(answer)),))


@dataclass(frozen=True)
class Prepared:
    """A sample ready for a batch: parts in patches, documents, what it is a positive for, seed, source, and check."""

    key: str
    concept: int
    seed: int
    parts: tuple[tuple[Modality, PartPatches], ...]
    documents: tuple[Document, ...]
    source: str = ""
    check: str | None = None


@dataclass
class Laid:
    """A document laid out, a value for each place: ids, labels, slot and position as in `Rows`.

    `answer` is which of the document's answers the place belongs to, -1 if to the prompt of several.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)


def lay_out(tokenizer: Tokenizer, document: Document, tokens: Mapping[int, tuple[Modality, Sequence[int]]]) -> Laid:
    """A document from left to right; the one place that knows how.

    `tokens` has the modality and the slots of each part that is shown. labels are shifted: what the next place must
    say, IGNORE wherever that is not the assistant's, and all over a prompt that waits for an answer. Each of several
    answers goes on where the prompt ends, and begins with an <|assistant|> of its own: one place cannot say the first
    piece of each.
    """
    laid = Laid()
    said: list[bool] = []  # by the assistant
    answer, after = -1 if document.answers else 0, 0

    def put(pieces: Sequence[int], by_assistant: bool = False, slots: Sequence[int] | None = None) -> None:
        nonlocal after
        laid.ids.extend(pieces)
        said.extend([by_assistant] * len(pieces))
        laid.slot.extend([-1] * len(pieces) if slots is None else slots)
        laid.position.extend(range(after, after + len(pieces)))
        laid.answer.extend([answer] * len(pieces))
        after += len(pieces)

    for number, turn in enumerate(document.turns):
        put([tokenizer.user if number else tokenizer.begin])
        for item in turn.asked:
            if isinstance(item, int):
                modality, slots = tokens[item]
                put([tokenizer.placeholder(modality)] * len(slots), slots=slots)
            else:
                put(item)
        if turn.answer is not None or not document.answers:
            put([tokenizer.assistant])
        if turn.answer is not None:
            put([*turn.answer, tokenizer.end], by_assistant=True)
    prompt = after
    for number, (pieces, _) in enumerate(document.answers):
        answer, after = number, prompt
        put([tokenizer.assistant])
        put([*pieces, tokenizer.end], by_assistant=True)
    following = zip(laid.ids[1:], said[1:], strict=True)
    waits = not document.answers and all(turn.answer is None for turn in document.turns[-1:])
    laid.labels = [piece if by_assistant and not waits else IGNORE for piece, by_assistant in following] + [IGNORE]
    return laid


def document_length(document: Document, tokens: Mapping[int, int]) -> int:
    """How many pieces `lay_out` will make of a document; `tokens` has the number of each part's."""
    asked = sum(tokens[item] if isinstance(item, int) else len(item) for turn in document.turns for item in turn.asked)
    said = sum(2 + (0 if turn.answer is None else len(turn.answer) + 1) for turn in document.turns)
    answers = sum(2 + len(pieces) for pieces, _ in document.answers)
    return asked + said + answers - (1 if document.answers else 0)


def longest_document(sample: Sample, tokenizer: Tokenizer) -> int:
    """Pieces of the longest document that training makes of a sample: one part of each kind, the longest of its texts;
    of a conversation all parts and texts.

    An upper bound: parts may be cut into fewer tokens, and a transcript stands beside its clip alone.
    """
    kinds: list[Modality] = [part.type for part in sample.all_parts]
    if sample.is_conversation:
        texts = sum(len(tokenizer.encode(part.text)) + 3 for part in sample.parts if part.type == "text" and part.text)
        return texts + sum(TOKENS.get(kind, 0) for kind in kinds)
    tokens = sum(TOKENS.get(kind, 0) for kind in set(kinds))
    said = [
        len(tokenizer.encode(part.lang or "")) + len(tokenizer.encode(part.text))
        for part in sample.all_parts
        if part.text
    ]
    return 3 + tokens + max(said, default=0)


def row_length_for(documents: Sequence[int]) -> int | None:
    """The row length that all but a few in a thousand documents of so many pieces fit in; None if ROW_LENGTH does."""
    needed = int(np.quantile(documents, 1 - _RARE, method="inverted_cdf"))
    return None if needed <= ROW_LENGTH else -(-needed // 64) * 64


def pack(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """(row, first place) of each document: the longest first, each into the first row with room for it."""
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        if lengths[k] > row_length:
            raise SkipSample(TOO_LONG, f"{lengths[k]} pieces, rows have {row_length}")
        row = next((r for r, n in enumerate(used) if n + lengths[k] <= row_length), len(used))
        if row == len(used):
            used.append(0)
        places[k] = (row, used[row])
        used[row] += lengths[k]
    return places


class Collate:
    """Prepared samples to one Batch, with a stream for each of `patchify` and rows of `row_length` pieces.

    A stream without a part gets the dummy one (owner -1). Every stream's parts are sorted by length, the longest first,
    and padded to it.
    """

    def __init__(self, patchify: Mapping[Modality, Patchify], tokenizer: Tokenizer, row_length: int) -> None:
        self.patchify: dict[Modality, Patchify] = {name: patchify[name] for name in MODALITIES if name in patchify}
        self.tokenizer, self.row_length = tokenizer, row_length

    def __call__(self, prepared: Sequence[Prepared], skipped: Mapping[str, int] | None = None) -> Batch:
        streams: dict[Modality, Patches] = {}
        slots: dict[tuple[int, int], tuple[int, int]] = {}
        tokens = 0
        for name, patchify in self.patchify.items():
            found = [
                (owner, number, part)
                for owner, sample in enumerate(prepared)
                for number, (modality, part) in enumerate(sample.parts)
                if modality == name
            ]
            found = sorted(found, key=lambda item: -len(item[2].valid)) or [(-1, 0, patchify.dummy())]
            streams[name] = _padded([part for _, _, part in found], [owner for owner, _, _ in found])
            if name == "text":
                continue
            for owner, number, part in found:
                count = part.tokens(patchify.merge)
                slots[owner, number] = (tokens, count)
                tokens += count
        return Batch(
            streams=streams,
            rows=self._rows(prepared, slots),
            keys=tuple(sample.key for sample in prepared),
            concept=torch.tensor([sample.concept for sample in prepared], dtype=torch.int64),
            seeds=torch.tensor([sample.seed for sample in prepared], dtype=torch.int64),
            skipped=dict(skipped or {}),
            sources=tuple(sample.source for sample in prepared),
            checks=tuple(sample.check for sample in prepared),
        )

    def _rows(self, prepared: Sequence[Prepared], slots: Mapping[tuple[int, int], tuple[int, int]]) -> Rows:
        """Documents in the order of the samples; `slots` is the first slot and the number of tokens of each part."""
        owners: list[int] = []
        scores: list[list[float]] = []
        laid: list[Laid] = []
        for owner, sample in enumerate(prepared):
            for document in sample.documents:
                shown: dict[int, tuple[Modality, Sequence[int]]] = {}
                for i in document.parts:
                    first, count = slots[owner, i]
                    shown[i] = sample.parts[i][0], range(first, first + count)
                owners.append(owner)
                scores.append([score for _, score in document.answers] or [1.0])
                laid.append(lay_out(self.tokenizer, document, shown))
        lengths = np.array([len(one.ids) for one in laid], dtype=np.int64)
        places = np.array(pack(lengths.tolist(), self.row_length), dtype=np.int64).reshape(-1, 2)
        within = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        at = np.repeat(places[:, 0] * self.row_length + places[:, 1], lengths) + within
        rows = int(places[:, 0].max(initial=0)) + 1

        def spread(values: Iterable[int] | np.ndarray, padding: int) -> Tensor:
            flat = np.full(rows * self.row_length, padding, dtype=np.int64)
            flat[at] = values if isinstance(values, np.ndarray) else np.fromiter(values, np.int64, len(at))
            return torch.from_numpy(flat.reshape(rows, self.row_length))

        def of_each(name: str) -> Iterable[int]:
            return chain.from_iterable(getattr(one, name) for one in laid)

        counts = np.array([len(of_one) for of_one in scores], dtype=np.int64)
        before = np.repeat(counts.cumsum() - counts, lengths)  # answers of earlier documents
        answer = np.fromiter(of_each("answer"), np.int64, len(at))
        return Rows(
            ids=spread(of_each("ids"), self.tokenizer.pad),
            labels=spread(of_each("labels"), IGNORE),
            document=spread(np.repeat(np.arange(len(laid)), lengths), -1),
            position=spread(of_each("position"), 0),
            slot=spread(of_each("slot"), -1),
            answer=spread(np.where(answer < 0, -1, answer + before), -1),
            owner=torch.tensor(owners, dtype=torch.int64),
            of=torch.from_numpy(np.repeat(np.arange(len(laid)), counts)),
            score=torch.tensor([score for of_one in scores for score in of_one]),
        )


def _padded(parts: Sequence[PartPatches], owners: Sequence[int]) -> Patches:
    """Parts of one modality, the longest first, as Patches."""
    shape = [max(part.values.shape[axis] for part in parts) for axis in range(parts[0].values.ndim)]
    values = np.zeros((len(parts), *shape), dtype=parts[0].values.dtype)
    coords = np.zeros((len(parts), shape[0], 4), dtype=np.float32)
    valid = np.zeros((len(parts), shape[0]), dtype=bool)
    for i, part in enumerate(parts):  # a channel fewer than another series leaves zeros beside it
        values[(i, *(slice(n) for n in part.values.shape))] = part.values
        coords[i, : len(part.coords)] = part.coords
        valid[i, : len(part.valid)] = part.valid
    described = [part.channels for part in parts if part.channels is not None]
    return Patches(
        values=torch.from_numpy(values),
        coords=torch.from_numpy(coords),
        valid=torch.from_numpy(valid),
        owner=torch.tensor(owners, dtype=torch.int64),
        description=_channels(described) if described else None,
    )


def _channels(described: Sequence[tuple[np.ndarray, np.ndarray]]) -> Channels:
    """The channels of all parts, padded to the most."""
    shape = (len(described), max(len(names) for names, _ in described))
    name, grid, valid = np.zeros(shape, np.int64), np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
    for i, (names, cells) in enumerate(described):
        name[i, : len(names)], grid[i, : len(names)], valid[i, : len(names)] = names, cells, True
    return Channels(name=torch.from_numpy(name), grid=torch.from_numpy(grid), valid=torch.from_numpy(valid))
