"""A small model and small batches for the tests of this room."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfusion.models.attention.rules import CausalWindow
from mmfusion.models.decoder import Decoder
from mmfusion.models.encoders.audio import AudioEncoder
from mmfusion.models.encoders.image import ImageEncoder
from mmfusion.models.encoders.sensor import SensorEncoder
from mmfusion.models.encoders.text import TextEncoder
from mmfusion.models.fusion.prefix import Prefix
from mmfusion.models.heads import PlacedHead
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.types import IGNORE, Batch, Channels, Modality, Patches, Rows

VOCAB, WIDTH, SPACE, PATCH_PX, FRAMES, BANDS, POINTS = 40, 16, 12, 4, 2, 8, 3
BEGIN, END, PLACEHOLDER = 1, 2, 3


def tiny_model(executor: str = "sdpa", window: int = 64) -> MultimodalModel:
    torch.manual_seed(0)
    anchors: dict[Modality, tuple[int, int, int, int]]
    anchors = {"image": (1, 2, 2, 1), "audio": (3, 1, 1, 2), "sensor": (2, 1, 1, 1), "text": (1, 1, 2, 1)}
    return MultimodalModel(
        encoders={
            "image": ImageEncoder(width=WIDTH, depth=1, heads=2, patch_px=PATCH_PX, merge=4, grid=3),
            "audio": AudioEncoder(frames=FRAMES, bands=BANDS, width=WIDTH, depth=1, heads=2, merge=2),
            "sensor": SensorEncoder(points=POINTS, width=WIDTH, depth=1, heads=2, buckets=16),
            "text": TextEncoder(vocab=VOCAB, width=WIDTH, depth=1, heads=2),
        },
        heads={name: PlacedHead(width=WIDTH, out=SPACE, anchors=counts) for name, counts in anchors.items()},
        fusion=Prefix(widths={"image": WIDTH, "audio": WIDTH, "sensor": WIDTH}, width=24, embedded=SPACE),
        decoder=Decoder(
            vocab=VOCAB,
            width=24,
            depth=2,
            heads=4,
            kv_heads=2,
            rule=CausalWindow(window=window, sink=1),
            executor="reference" if executor == "reference" else "sdpa",
        ),
    )


def stack(values: Sequence[Tensor], coords: Sequence[Tensor], owner: Sequence[int]) -> Patches:
    """Parts of unequal lengths, padded with zeros."""
    pad = torch.nn.utils.rnn.pad_sequence
    valid = pad([torch.ones(len(part), dtype=torch.bool) for part in values], batch_first=True)
    return Patches(pad(list(values), batch_first=True), pad(list(coords), batch_first=True), valid, torch.tensor(owner))


def image_coords(rows: int, columns: int, blocks: bool = True) -> Tensor:
    """[N, 4] of a full grid: in 2x2 blocks, or row by row."""
    places = [(r, c) for r in range(rows) for c in range(columns)]
    if blocks:
        places.sort(key=lambda place: (place[0] // 2, place[1] // 2))
    return torch.tensor([(0, r, c, 0) for r, c in places], dtype=torch.float32)


def images(grids: Sequence[tuple[int, int]], owner: Sequence[int]) -> Patches:
    coords = [image_coords(*grid) for grid in grids]
    return stack([torch.randn(len(c), 3 * PATCH_PX**2) for c in coords], coords, owner)


def clips(times: Sequence[int], owner: Sequence[int]) -> Patches:
    coords = [torch.tensor([(0.08 * t, 0, 0, b) for t in range(n) for b in range(2)]) for n in times]
    return stack([torch.randn(len(c), (FRAMES + 1) * BANDS) for c in coords], coords, owner)


def series(times: Sequence[int], owner: Sequence[int], channels: int = 3) -> Patches:
    coords = [torch.tensor([(0.5 * t, 0, 0, 0) for t in range(n)], dtype=torch.float32) for n in times]
    parts = stack([torch.randn(n, channels, POINTS, 2) for n in times], coords, owner)
    P = len(times)
    name = torch.arange(1, channels + 1).expand(P, -1) * 1_000_003
    grid, valid = torch.rand(P, channels, 2) * 4, torch.ones(P, channels, dtype=torch.bool)
    return dataclasses.replace(parts, description=Channels(name, grid, valid))


def texts(lengths: Sequence[int], owner: Sequence[int]) -> Patches:
    coords = [torch.tensor([(0, 0, i, 0) for i in range(n)], dtype=torch.float32) for n in lengths]
    return stack([torch.randint(4, VOCAB, (n,)) for n in lengths], coords, owner)


def widen(parts: Patches, extra: int) -> Patches:
    """The same parts with `extra` more padding patches that hold rubbish."""
    P = len(parts.valid)
    rubbish = torch.randint(0, VOCAB, (P, extra)) if parts.values.ndim == 2 else None
    if rubbish is None:
        rubbish = 9 * torch.randn(P, extra, *parts.values.shape[2:])
    return dataclasses.replace(
        parts,
        values=torch.cat([parts.values, rubbish], dim=1),
        coords=torch.cat([parts.coords, torch.randint(0, 30, (P, extra, 4)).float()], dim=1),
        valid=torch.cat([parts.valid, torch.zeros(P, extra, dtype=torch.bool)], dim=1),
    )


def pack(documents: Sequence[tuple[int, Sequence[int], Sequence[int]]], length: int) -> Rows:
    """Documents (owner, slots, pieces) into rows, first come first placed; labels on the pieces after the first."""
    rows: list[list[list[int]]] = [[]]  # a cell is [id, label, document, position, slot]
    for k, (_, slots, pieces) in enumerate(documents):
        ids = [PLACEHOLDER] * len(slots) + list(pieces)
        cells = [
            [piece, ids[i + 1] if len(slots) <= i < len(ids) - 1 else IGNORE, k, i, slots[i] if i < len(slots) else -1]
            for i, piece in enumerate(ids)
        ]
        if len(rows[-1]) + len(cells) > length:
            rows.append([])
        rows[-1] += cells
    full = [row + [[0, IGNORE, -1, 0, -1]] * (length - len(row)) for row in rows]
    ids, labels, document, position, slot = torch.tensor(full).unbind(-1)
    owner = torch.tensor([owner for owner, _, _ in documents], dtype=torch.int64)
    of = torch.arange(len(documents))
    return Rows(ids, labels, document, position, slot, document, owner, of, torch.ones(len(documents)))


def tiny_batch(absent: Sequence[Modality] = ()) -> Batch:
    """Five samples: pictures of samples 0 and 1, clips of 2, series of 3 and 4, texts of all; two share a concept.

    An absent modality is one dummy part with one valid zero patch; its samples' documents then have no tokens.
    """
    torch.manual_seed(1)
    streams: dict[Modality, Patches] = {
        "image": images([(4, 4), (2, 3)], [0, 1]),
        "audio": clips([3], [2]),
        "sensor": series([4, 2], [3, 4]),
        "text": texts([4, 3, 2, 2, 1], [0, 1, 2, 3, 4]),
    }
    slots: dict[int, list[int]] = {k: [] for k in range(5)}
    number = 0
    merges: dict[Modality, int] = {"image": 4, "audio": 2, "sensor": 1}
    for name, merge in merges.items():
        if name in absent:
            streams[name] = dummy(streams[name])
        for p, owner in enumerate(streams[name].owner.tolist()):
            count = -(-int(streams[name].valid[p].sum()) // merge)
            if owner >= 0:
                slots[owner] = list(range(number, number + count))
            number += count
    if "text" in absent:
        streams["text"] = dummy(streams["text"])
    pieces = [[BEGIN, *torch.randint(4, VOCAB, (3 + k,)).tolist(), END] for k in range(5)]
    rows = pack([(k, slots[k], pieces[k]) for k in range(5)], length=24)
    return Batch(
        streams=streams,
        rows=rows,
        keys=tuple(f"sample{k}" for k in range(5)),
        concept=torch.tensor([70, 71, 72, 73, 73]),
        seeds=torch.arange(5),
    )


def dummy(parts: Patches) -> Patches:
    """What stands in for an absent modality."""
    description = parts.description
    if description is not None:
        description = Channels(description.name[:1], description.grid[:1], description.valid[:1])
    valid = torch.zeros_like(parts.valid[:1])
    valid[:, 0] = True
    return Patches(
        torch.zeros_like(parts.values[:1]), torch.zeros_like(parts.coords[:1]), valid, torch.tensor([-1]), description
    )
