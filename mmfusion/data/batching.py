"""Samples cut into patches, to a Batch: parts sorted and padded, documents laid out and packed into rows.

A document is, from left to right,

    <|begin|>  its parts' placeholders, one a token  the prompt's pieces  <|assistant|>  the answer's pieces  <|end|>

and a loss is read on the answer and the end alone: `labels` at a place is what the next place must say.
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
class Document:
    """What the decoder reads and says about a sample: numbers into `Prepared.parts`, and piece ids.

    Without an answer it is a prompt, left open for the decoder to go on.
    """

    parts: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: tuple[int, ...] | None


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
    tokenizer: Tokenizer, media: Sequence[tuple[Modality, int]], prompt: Sequence[int], answer: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a document with `media`, each a modality and its number of tokens; the one place that knows how.

    labels are shifted: what the next place must say, IGNORE before the answer and at the end.
    """
    ids = [tokenizer.begin]
    for modality, count in media:
        ids += [tokenizer.placeholder(modality)] * count
    ids += [*prompt, tokenizer.assistant]
    if answer is None:
        return ids, [IGNORE] * len(ids)
    said = [*answer, tokenizer.end]
    return ids + said, [IGNORE] * (len(ids) - 1) + said + [IGNORE]


def document_length(document: Document, parts: Sequence[tuple[Modality, PartPatches]], merge: Mapping[str, int]) -> int:
    """How many pieces `lay_out` will make of it."""
    tokens = sum(parts[i][1].tokens(merge[parts[i][0]]) for i in document.parts)
    said = 0 if document.answer is None else len(document.answer) + 1
    return 2 + tokens + len(document.prompt) + said


def longest_document(sample: Sample, tokenizer: Tokenizer) -> int:
    """Pieces of the longest document that training makes of a sample: one part of each kind, the longest of its texts.

    An upper bound: parts may be cut into fewer tokens, and a transcript stands beside its clip alone.
    """
    kinds = {part.type for part in sample.all_parts}
    tokens = sum(count for modality, count in TOKENS.items() if modality in kinds)
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
                filled: list[tuple[Modality, int, int]] = [
                    (sample.parts[i][0], *slots[owner, i]) for i in document.parts
                ]
                media: list[tuple[Modality, int]] = [(name, count) for name, _, count in filled]
                ids, labels = lay_out(self.tokenizer, media, document.prompt, document.answer)
                slot = [-1, *(s for _, first, count in filled for s in range(first, first + count))]
                owners.append(owner)
                laid.append((ids, labels, slot + [-1] * (len(ids) - len(slot))))
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
