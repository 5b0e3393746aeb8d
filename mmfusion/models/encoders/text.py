"""The text tower of the contrastive objective; the decoder has its own embedding."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import nn

from mmfusion.models.layers import Transformer, one_part_a_row
from mmfusion.types import Modality, Patches, Tokens


class TextEncoder(nn.Module):
    """Pieces see each other in both directions; positions are rotary, so that no length is built in."""

    modality: Modality = "text"
    merge: int = 1

    def __init__(
        self,
        *,
        vocab: Annotated[int, Gt(0)],
        width: Annotated[int, Gt(0)],
        depth: Annotated[int, Gt(0)],
        heads: Annotated[int, Gt(0)],
        mlp_ratio: Annotated[float, Gt(0)] = 8 / 3,
        rope_base: Annotated[float, Gt(1)] = 10_000.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight)
        self.transformer = Transformer(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, rope_base=rope_base)

    def forward(self, patches: Patches) -> Tokens:
        """Piece ids [P, N] -> x[P, N, D]."""
        places = one_part_a_row(patches.valid, position=patches.coords[..., 2].long())
        x = self.transformer(self.embedding(patches.values), places)
        return Tokens(x, patches.coords, patches.valid, patches.owner)
