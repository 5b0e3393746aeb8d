"""A cross-batch memory: embeddings of past batches, kept as further negatives (Wang et al. 1912.06798)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """A ring of the last `size` embeddings [size, E] and their concepts, without gradient.

    All of it lies in buffers of fixed shape, so that a state dict holds it and a resumed run goes on exactly.
    """

    embeddings: Tensor
    concept: Tensor
    seen: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("embeddings", torch.zeros(size, width))
        self.register_buffer("concept", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # ever added; the ring's cursor is seen % size

    def valid(self) -> Tensor:
        """[size], True where something has been stored."""
        return torch.arange(self.size, device=self.seen.device) < self.seen

    @torch.no_grad()
    def add(self, embeddings: Tensor, concept: Tensor) -> None:
        """Stores embeddings[n, E] with concept[n]; the oldest make room, and of more than `size` the last stay."""
        if not self.size:
            return
        kept = min(len(embeddings), self.size)
        place = (self.seen + len(embeddings) - kept + torch.arange(kept, device=self.seen.device)) % self.size
        # Not in place: the backward pass of the loss that has just read the ring still wants it as it was.
        self.embeddings = self.embeddings.index_copy(0, place, embeddings[-kept:].to(self.embeddings.dtype))
        self.concept = self.concept.index_copy(0, place, concept[-kept:])
        self.seen = self.seen + len(embeddings)
