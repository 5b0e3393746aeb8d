"""What a frozen model said of a document, remembered by what it saw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from mmfusion.types import Batch


class Kept:
    """Numbers of answers in memory, by a hash of their document as it reached the model: pieces, and values of parts.

    What is met again is not computed again, where all of a batch is known; what is augmented is never met again.
    Equal but for rounding: elsewhere in packed rows sums are taken in another order. A run that goes on begins empty.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
        """[K], of each answer: as kept, or as `compute` gives them, which are kept then."""
        seen = fingerprints(batch)
        if not seen or not all(name in self._known for name in seen):
            found = compute()
            counts = torch.bincount(batch.rows.of, minlength=len(seen)).tolist()
            self._known.update(zip(seen, found.detach().cpu().split(counts), strict=True))
            return found
        return torch.cat([self._known[name] for name in seen]).to(batch.rows.ids.device)


def fingerprints(batch: Batch) -> list[bytes]:
    """Of each of the D documents a hash of what a model reads for it, without padding and places in the batch."""
    rows = batch.rows
    document = rows.document.flatten()
    order = document.argsort(stable=True)[int((document < 0).sum()) :]
    counts = torch.bincount(document[order], minlength=len(rows.owner)).tolist()
    laid = torch.stack([rows.ids, rows.labels, rows.position]).flatten(1)[:, order].cpu().split(counts, dim=1)
    parts = [b""] * len(batch.keys)
    for name, stream in batch.streams.items():
        for p, owner in enumerate(stream.owner.tolist()):
            if owner >= 0:
                valid, told = stream.valid[p], stream.description
                read = [stream.values[p, valid], stream.coords[p, valid]]
                if told is not None:
                    real = told.valid[p]
                    read = [read[0][:, real], read[1], told.name[p, real], told.grid[p, real]]
                parts[owner] += name.encode() + _hash(*read)
    return [_hash(one, more=parts[owner]) for one, owner in zip(laid, rows.owner.tolist(), strict=True)]


def _hash(*tensors: Tensor, more: bytes = b"") -> bytes:
    made = hashlib.blake2b(more, digest_size=16)
    for tensor in tensors:
        made.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().cpu().numpy().tobytes())
    return made.digest()
