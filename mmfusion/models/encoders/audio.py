"""Sound: patches of a log-mel spectrogram through a transformer."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import nn

from mmfusion.models.layers import CoordinateEncoding, Merge, Transformer, one_part_a_row
from mmfusion.types import Modality, Patches, Tokens


class AudioEncoder(nn.Module):
    """A patch is `frames` x `bands` of the spectrogram and the clip's mean as one frame more; its time (s) and its band
    stand in `coords`, so that clips of any length, and patches of one or several band groups, are read alike (after
    AST, Gong et al. 2104.01778).
    """

    modality: Modality = "audio"

    def __init__(
        self,
        *,
        frames: Annotated[int, Gt(0)],
        bands: Annotated[int, Gt(0)],
        width: Annotated[int, Gt(0)],
        depth: Annotated[int, Gt(0)],
        heads: Annotated[int, Gt(0)],
        merge: Annotated[int, Gt(0)] = 1,
        mlp_ratio: Annotated[float, Gt(0)] = 8 / 3,
    ) -> None:
        super().__init__()
        self.width, self.merge = width, merge
        self.embed = nn.Linear((frames + 1) * bands, width)
        self.place = CoordinateEncoding(width, {0: (0.1, 60.0), 3: (0.5, 32.0)})
        self.transformer = Transformer(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        self.merging = Merge(width, merge)

    def forward(self, patches: Patches) -> Tokens:
        """values[P, N, (frames + 1)·bands] -> x[P, ⌈N / merge⌉, D]."""
        x = self.embed(patches.values) + self.place(patches.coords)
        x = self.transformer(x, one_part_a_row(patches.valid))
        x, coords, valid = self.merging(x, patches.coords, patches.valid)
        return Tokens(x, coords, valid, patches.owner)
