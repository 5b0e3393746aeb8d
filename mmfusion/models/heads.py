"""From a part's tokens to its place in the shared embedding space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Len
from torch import Tensor, nn
from torch.nn import functional as F

from mmfusion.types import Tokens

BANDWIDTH = 0.4  # of an anchor's reach, in distances between anchors: a token on one weighs 23 times less on the next


class PlacedHead(nn.Module):
    """Reads tokens with their place: near averages around anchors, side by side into one linear map, to unit length.

    `anchors` are four counts along time, row, column and channel. They stand evenly over the part's own extent, first
    and last on its edges; one anchor along an axis averages over it. With (1, 1, 1, 1) this is plain averaging, which
    forgets where things are.
    """

    anchors: Tensor

    def __init__(
        self,
        *,
        width: Annotated[int, Gt(0)],
        out: Annotated[int, Gt(0)],
        anchors: Annotated[Sequence[Annotated[int, Gt(0)]], Len(4, 4)],
    ) -> None:
        super().__init__()
        if len(anchors) != 4:
            raise ValueError(f"anchors are counts along time, row, column and channel, got {list(anchors)}")
        self.width, self.out = width, out
        axes = [torch.linspace(0, 1, count) if count > 1 else torch.full((1,), 0.5) for count in anchors]
        self.register_buffer("anchors", torch.cartesian_prod(*axes), persistent=False)
        sharpness = torch.tensor([(count - 1) / BANDWIDTH for count in anchors])
        self.register_buffer("sharpness", sharpness, persistent=False)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(math.prod(anchors) * width, out, bias=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """x[P, M, D] -> embeddings[P, E] of unit length; a part without any valid token gives a constant one."""
        near = self.weights(tokens.coords, tokens.valid).to(tokens.x.dtype) @ tokens.x
        return F.normalize(self.project(self.norm(near).flatten(1)), dim=-1)

    def weights(self, coords: Tensor, valid: Tensor) -> Tensor:
        """[P, anchors, M]: what each token counts at each anchor; the valid ones sum to 1, the others are 0."""
        far = torch.finfo(coords.dtype).max
        low = coords.masked_fill(~valid[..., None], far).amin(dim=1, keepdim=True)
        high = coords.masked_fill(~valid[..., None], -far).amax(dim=1, keepdim=True)
        extent = high - low
        spot = torch.where(extent > 0, (coords - low) / extent.clamp(min=1e-9), 0.5)
        distance = (spot[:, None] - self.anchors[:, None]) * self.get_buffer("sharpness")
        score = -distance.square().sum(dim=-1) / 2
        score = score.masked_fill(~valid[:, None], torch.finfo(score.dtype).min)
        return score.softmax(dim=-1) * valid[:, None]
