"""What attention remembers while text is generated: keys, values and their places, in buffers of a fixed capacity."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfusion.models.attention.rules import Places


class LayerCache:
    """One layer's keys and values, [R, G, capacity, d] each."""

    def __init__(self, rows: int, kv_heads: int, capacity: int, head_width: int, like: Tensor) -> None:
        self._keys = like.new_empty(rows, kv_heads, capacity, head_width)
        self._values = like.new_empty(rows, kv_heads, capacity, head_width)
        self._length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps k and v[R, G, L, d] and returns all keys and values so far, the new ones last."""
        end = self._length + k.shape[2]
        self._keys[:, :, self._length : end] = k
        self._values[:, :, self._length : end] = v
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def repeat(self, times: int) -> None:
        self._keys = self._keys.repeat_interleave(times, dim=0)
        self._values = self._values.repeat_interleave(times, dim=0)


class Cache:
    """The memory of a stack of attention layers.

    Rows may have unequal lengths: what pads them has document -1, stays in the cache, and is seen by no rule.
    `like` gives the device and the floating type.
    """

    def __init__(self, *, depth: int, rows: int, kv_heads: int, capacity: int, head_width: int, like: Tensor) -> None:
        self.layers = [LayerCache(rows, kv_heads, capacity, head_width, like) for _ in range(depth)]
        self.capacity = capacity
        self._document = torch.empty(rows, 0, dtype=torch.int64, device=like.device)
        self._position = torch.empty(rows, 0, dtype=torch.int64, device=like.device)

    def extend(self, places: Places) -> Places:
        """Notes the places of the pieces that come next and returns those of all keys.

        Raises ValueError when the cache is full.
        """
        length = self._document.shape[1] + places.document.shape[1]
        if length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} pieces a row, {length} were asked for")
        self._document = torch.cat([self._document, places.document], dim=1)
        self._position = torch.cat([self._position, places.position], dim=1)
        return Places(self._document, self._position)

    def repeat(self, times: int) -> None:
        """Each row so many times, side by side: one prompt goes on in several ways."""
        if times == 1:
            return
        for layer in self.layers:
            layer.repeat(times)
        self._document = self._document.repeat_interleave(times, dim=0)
        self._position = self._position.repeat_interleave(times, dim=0)
