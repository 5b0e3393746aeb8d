"""Samples cut into patches, to a Batch: parts sorted and padded, documents laid out and packed into rows.

A document is a conversation; a caption is one of a single turn. From left to right, for each turn,

    <|begin|>  what is asked  <|assistant|>  the answer's pieces  <|end|>

where all turns but the first have <|user|> in the place of <|begin|>, and what is asked is any sequence of pieces and
of parts, a placeholder for each of a part's tokens. A loss is read on the answers and their ends alone: `labels` at a
place is what the next place must say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mmfusion.data.patchify import PartPatches, Patchify
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import IGNORE, MODALITIES, Batch, Channels, Modality, Patches, Rows, Sample, SkipSample

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
    """What the decoder reads and says about a sample. Only the last turn may be open."""

    turns: tuple[Turn, ...]

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
    """A sample ready for a batch: parts in patches, documents, what it is a positive for, seed, and source."""

    key: str
    concept: int
    seed: int
    parts: tuple[tuple[Modality, PartPatches], ...]
    documents: tuple[Document, ...]
    source: str = ""


def lay_out(
    tokenizer: Tokenizer, document: Document, tokens: Mapping[int, tuple[Modality, Sequence[int]]]
) -> tuple[list[int], list[int], list[int]]:
    """(ids, labels, slot) of a document, as in `Rows`; the one place that knows how.

    `tokens` has the modality and the slots of each part that is shown. labels are shifted: what the next place must
    say, IGNORE wherever that is not the assistant's.
    """
    ids: list[int] = []
    said: list[bool] = []  # by the assistant
    slot: list[int] = []

    def put(pieces: Sequence[int], by_assistant: bool = False, slots: Sequence[int] | None = None) -> None:
        ids.extend(pieces)
        said.extend([by_assistant] * len(pieces))
        slot.extend([-1] * len(pieces) if slots is None else slots)

    for number, turn in enumerate(document.turns):
        put([tokenizer.user if number else tokenizer.begin])
        for item in turn.asked:
            if isinstance(item, int):
                modality, slots = tokens[item]
                put([tokenizer.placeholder(modality)] * len(slots), slots=slots)
            else:
                put(item)
        put([tokenizer.assistant])
        if turn.answer is not None:
            put([*turn.answer, tokenizer.end], by_assistant=True)
    following = zip(ids[1:], said[1:], strict=True)
    return ids, [piece if by_assistant else IGNORE for piece, by_assistant in following] + [IGNORE], slot


def document_length(document: Document, tokens: Mapping[int, int]) -> int:
    """How many pieces `lay_out` will make of a document; `tokens` has the number of each part's."""
    asked = sum(tokens[item] if isinstance(item, int) else len(item) for turn in document.turns for item in turn.asked)
    return asked + sum(2 + (0 if turn.answer is None else len(turn.answer) + 1) for turn in document.turns)


def longest_document(sample: Sample, tokenizer: Tokenizer) -> int:
    """Pieces of the longest document that training makes of a sample: one part of each kind, the longest of its texts;
    of a conversation all parts and texts.

    An upper bound: parts may be cut into fewer tokens, and a transcript stands beside its clip alone.
    """
    kinds = [part.type for part in sample.all_parts]
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
        )

    def _rows(self, prepared: Sequence[Prepared], slots: Mapping[tuple[int, int], tuple[int, int]]) -> Rows:
        """Documents in the order of the samples; `slots` is the first slot and the number of tokens of each part."""
        owners: list[int] = []
        laid: list[tuple[list[int], list[int], list[int]]] = []
        for owner, sample in enumerate(prepared):
            for document in sample.documents:
                shown: dict[int, tuple[Modality, Sequence[int]]] = {}
                for i in document.parts:
                    first, count = slots[owner, i]
                    shown[i] = sample.parts[i][0], range(first, first + count)
                owners.append(owner)
                laid.append(lay_out(self.tokenizer, document, shown))
        lengths = np.array([len(ids) for ids, _, _ in laid], dtype=np.int64)
        places = np.array(pack(lengths.tolist(), self.row_length), dtype=np.int64).reshape(-1, 2)
        position = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
        at = np.repeat(places[:, 0] * self.row_length + places[:, 1], lengths) + position
        rows = int(places[:, 0].max(initial=0)) + 1

        def spread(values: Sequence[int] | np.ndarray, padding: int) -> Tensor:
            flat = np.full(rows * self.row_length, padding, dtype=np.int64)
            flat[at] = values
            return torch.from_numpy(flat.reshape(rows, self.row_length))

        return Rows(
            ids=spread(list(chain.from_iterable(ids for ids, _, _ in laid)), self.tokenizer.pad),
            labels=spread(list(chain.from_iterable(labels for _, labels, _ in laid)), IGNORE),
            document=spread(np.repeat(np.arange(len(laid)), lengths), -1),
            position=spread(position, 0),
            slot=spread(list(chain.from_iterable(slot for _, _, slot in laid)), -1),
            owner=torch.tensor(owners, dtype=torch.int64),
            answer=torch.zeros(len(owners), dtype=torch.int64),
            score=torch.ones(len(owners)),
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
