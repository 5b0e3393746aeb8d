"""Pictures of any size and shape: timm's native-resolution ViT over patches, several patches a token."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from mmfusion.models.layers import Merge
from mmfusion.types import Modality, Patches, Tokens


@contextmanager
def _without_wandb() -> Iterator[None]:
    """timm imports wandb, for a log that is not used here, and that takes half as long as timm itself."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # pyright: ignore[reportArgumentType]  (so Python is told that there is none)
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]


with _without_wandb():
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg


class ImageEncoder(nn.Module):
    """NaFlex ViT (SigLIP 2, Tschannen et al. 2502.14786; timm), then `merge` consecutive patches to a token.

    Patches may come in any order, since positions are sampled from the learned `grid` x `grid` table at each patch's
    row and column, relative to the picture's own extent: one picture a row, never two. The table is sampled bilinearly
    (an eighth of a small model's step cheaper than bicubic on a CPU). Layer scale, class token and registers are off:
    at a few layers they only slow the start. A patch has (patch_px / cell_px)² cells of 3 colours and `orientations`
    gradient energies; with cell_px=1 and none of them these are its pixels.
    """

    modality: Modality = "image"

    def __init__(
        self,
        *,
        width: Annotated[int, Gt(0)],
        depth: Annotated[int, Gt(0)],
        heads: Annotated[int, Gt(0)],
        patch_px: Annotated[int, Gt(0)] = 8,
        cell_px: Annotated[int, Gt(0)] = 1,
        orientations: Annotated[int, Ge(0)] = 0,
        merge: Annotated[int, Gt(0)] = 4,
        grid: Annotated[int, Gt(0)] = 6,
        mlp_ratio: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        super().__init__()
        self.width, self.merge = width, merge
        cfg = NaFlexVitCfg(
            patch_size=patch_px // cell_px,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            pos_embed_grid_size=(grid, grid),
            pos_embed_interp_mode="bilinear",
            pos_embed_antialias=False,
            pos_embed_use_grid_sample=True,  # timm's other way assumes full grids in row-major order
            global_pool="",
            fc_norm=False,
        )
        self.vit = NaFlexVit(cfg, in_chans=3 + orientations, num_classes=0)
        self.merging = Merge(width, merge)

    def forward(self, patches: Patches) -> Tokens:
        """values[P, N, cells·(3 + orientations)] -> x[P, ⌈N / merge⌉, D]."""
        valid = patches.valid
        place = torch.where(valid[..., None], patches.coords[..., 1:3], 0.0).long()  # padding must not widen the grid
        mask = None if bool(valid.all()) else valid  # pictures of one shape need no attention mask, which costs time
        features = self.vit.forward_features(patches.values, patch_coord=place, patch_valid=mask)
        x = cast("dict[str, Tensor]", features)["patches"]
        x, coords, valid = self.merging(x, patches.coords, valid)
        return Tokens(x, coords, valid, patches.owner)
