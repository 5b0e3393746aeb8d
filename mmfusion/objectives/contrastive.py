"""Bring together what shows the same thing, in pairs of modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Len, MinLen
from torch import Tensor, nn

from mmfusion.objectives.functional import symmetric_contrastive_loss
from mmfusion.types import MODALITIES, Batch, Loss, Modality, Outputs

MAX_SCALE = 100.0  # CLIP's: no similarity is multiplied by more


class Contrastive(nn.Module):
    """Symmetric contrastive loss over each of `pairs`: every part of one side is an anchor among all of the other.

    Parts of one concept are positives of each other, whosever they are; all others are negatives; dummy parts (owner
    -1) are neither. Losses are named `contrastive/<first>-<second>`; the count is the number of anchors that have a
    positive, of both directions. Each pair learns a temperature of its own, from `temperature` on.
    """

    def __init__(
        self,
        *,
        pairs: Annotated[Sequence[Annotated[Sequence[Modality], Len(2, 2)]], MinLen(1)],
        temperature: Annotated[float, Gt(0)] = 0.07,
    ) -> None:
        super().__init__()
        self.pairs: list[tuple[Modality, Modality]] = [(first, second) for first, second in pairs]
        named = {name for pair in self.pairs for name in pair}
        self.modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name in named)
        self.log_scale = nn.Parameter(torch.full((len(self.pairs),), -math.log(temperature)))

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return sum(_anchors(_positive(batch, first, second)) for first, second in self.pairs)

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        scales = self.log_scale.exp().clamp(max=MAX_SCALE)
        losses = {}
        for index, (first, second) in enumerate(self.pairs):
            positive = _positive(batch, first, second)
            there, back = symmetric_contrastive_loss(
                outputs.embeddings[first],
                outputs.embeddings[second],
                scale=scales[index],
                positive=positive,
                x_valid=_valid(batch, first),
                y_valid=_valid(batch, second),
            )
            counted = torch.cat([positive.any(dim=1), positive.any(dim=0)])
            owner = torch.cat([_owner(batch, first), _owner(batch, second)]).where(counted, -1)
            each = torch.cat([there, back]).detach()
            losses[f"contrastive/{first}-{second}"] = Loss(there.sum() + back.sum(), _anchors(positive), each, owner)
        return losses


def _owner(batch: Batch, modality: Modality) -> Tensor:
    """[P], whose each part is; -1 for the dummy part."""
    if modality not in batch.streams:
        raise ValueError(f"contrastive.pairs: names {modality}, but batches hold {', '.join(batch.streams)}")
    return batch.streams[modality].owner


def _valid(batch: Batch, modality: Modality) -> Tensor:
    """[P], False for the dummy part."""
    return _owner(batch, modality) >= 0


def _concept(batch: Batch, modality: Modality) -> Tensor:
    """[P], the concept of each part's sample; 0 for the dummy part, whose owner -1 finds the one put last."""
    return torch.cat([batch.concept, batch.concept.new_zeros(1)])[_owner(batch, modality)]


def _positive(batch: Batch, first: Modality, second: Modality) -> Tensor:
    """[P, Q], True where two real parts are of one concept."""
    same = _concept(batch, first)[:, None] == _concept(batch, second)
    return same & _valid(batch, first)[:, None] & _valid(batch, second)


def _anchors(positive: Tensor) -> int:
    """How many anchors of both directions have a positive."""
    return int(positive.any(dim=1).sum() + positive.any(dim=0).sum())
