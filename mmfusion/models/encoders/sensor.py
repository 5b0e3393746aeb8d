"""Sensor series: any set of described channels, summed into one token per stretch of time, then a transformer."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from mmfusion.models.layers import CoordinateEncoding, Merge, Transformer, one_part_a_row
from mmfusion.types import Channels, Modality, Patches, Tokens


class SensorEncoder(nn.Module):
    """Each channel has a linear map of its own, found by what the channel is and not by where it stands in the file.

    The maps lie in a table of `buckets`, found by the channel's hash (the hashing trick, Weinberger et al. 0902.2206),
    so that a channel never seen in training is read too, through a map that nothing or something else has trained. A
    place on a tactile array scales the map, so that the sum over channels still knows what was pressed where. The sum
    is divided by the square root of the number of channels.
    """

    modality: Modality = "sensor"

    def __init__(
        self,
        *,
        points: Annotated[int, Gt(0)],
        width: Annotated[int, Gt(0)],
        depth: Annotated[int, Gt(0)],
        heads: Annotated[int, Gt(0)],
        buckets: Annotated[int, Gt(0)] = 256,
        merge: Annotated[int, Gt(0)] = 1,
        mlp_ratio: Annotated[float, Gt(0)] = 8 / 3,
    ) -> None:
        super().__init__()
        self.width, self.merge, self.points = width, merge, points
        self.maps = nn.Embedding(buckets, 2 * points * width)
        with torch.no_grad():
            self.maps.weight.mul_((2 * points) ** -0.5)
        self.grid = CoordinateEncoding(width, {0: (2.0, 64.0), 1: (2.0, 64.0)})
        self.time = CoordinateEncoding(width, {0: (0.5, 240.0)})
        self.transformer = Transformer(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        self.merging = Merge(width, merge)

    def forward(self, patches: Patches) -> Tokens:
        """values[P, N, C, S, 2] and their description -> x[P, ⌈N / merge⌉, D]. Raises ValueError without one."""
        if patches.description is None:
            raise ValueError("sensor patches come with a description of their channels (Patches.description)")
        maps = self._channel_maps(patches.description)
        x = patches.values.flatten(2) @ maps.flatten(1, 2) + self.time(patches.coords)
        x = self.transformer(x, one_part_a_row(patches.valid))
        x, coords, valid = self.merging(x, patches.coords, patches.valid)
        return Tokens(x, coords, valid, patches.owner)

    def _channel_maps(self, channels: Channels) -> Tensor:
        """[P, C, 2·S, D]: each channel's linear map; zeros for padding."""
        maps = self.maps(channels.name % self.maps.num_embeddings).unflatten(-1, (2 * self.points, self.width))
        count = channels.valid.sum(dim=1).clamp(min=1)
        share = channels.valid / count[:, None].sqrt()
        return maps * ((1 + self.grid(channels.grid)) * share[..., None]).unsqueeze(2)
