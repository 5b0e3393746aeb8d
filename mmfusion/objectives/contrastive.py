"""Bring together what shows the same thing, in pairs of modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Len, MinLen
from torch import Tensor, nn

from mmfusion.objectives.functional import contrastive_loss
from mmfusion.ranks import rows_of_all
from mmfusion.types import MODALITIES, Batch, Loss, Modality, Outputs

MAX_SCALE = 100.0  # CLIP's: no similarity is multiplied by more


class Contrastive(nn.Module):
    """Symmetric contrastive loss over each of `pairs`: every part of one side is an anchor among all of the other.

    Parts of one concept are positives of each other, whosever they are; all others are negatives; dummy parts (owner
    -1) are neither. Losses are named `contrastive/<first>-<second>`; the count is the number of anchors that have a
    positive, of both directions. Each pair learns a temperature of its own, from `temperature` on.

    In training the parts of all ranks stand among the others, and gradients go to them; each rank has the loss of its
    own anchors.
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
        others = self._others(batch)
        return sum(_anchors(*_positive(batch, others, first, second)) for first, second in self.pairs)

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        scales = self.log_scale.exp().clamp(max=MAX_SCALE)
        embeddings, others = outputs.embeddings, self._others(batch)
        of_all: dict[Modality, Tensor] = {name: self._of_all(embeddings[name]) for name in self.modalities}
        losses = {}
        for index, (first, second) in enumerate(self.pairs):
            there, back = _positive(batch, others, first, second)
            sides: list[tuple[Modality, Modality, Tensor]] = [(first, second, there), (second, first, back)]
            each = torch.cat(
                [
                    contrastive_loss(
                        embeddings[x], of_all[y], scale=scales[index], positive=positive, candidate=others[y][:, 1] >= 0
                    )
                    for x, y, positive in sides
                ]
            )
            counted = torch.cat([there.any(dim=1), back.any(dim=1)])
            owner = torch.cat([_owner(batch, first), _owner(batch, second)]).where(counted, -1)
            losses[f"contrastive/{first}-{second}"] = Loss(each.sum(), _anchors(there, back), each.detach(), owner)
        return losses

    def _of_all(self, x: Tensor) -> Tensor:
        """x[P, *] of all ranks; in validation each rank judges batches of its own."""
        return rows_of_all(x) if self.training else x

    def _others(self, batch: Batch) -> dict[Modality, Tensor]:
        """[P, 2] of all ranks: each part's concept, and its owner, which is negative for a dummy part."""
        return {
            name: self._of_all(torch.stack([_concept(batch, name), _owner(batch, name)], dim=1))
            for name in self.modalities
        }


def _positive(batch: Batch, others: dict[Modality, Tensor], first: Modality, second: Modality) -> tuple[Tensor, Tensor]:
    """[P, *] and [Q, *], for this rank's parts of either side: which of all ranks' parts of the other are positives.

    True where two real parts are of one concept.
    """

    def of(x: Modality, y: Modality) -> Tensor:
        same = _concept(batch, x)[:, None] == others[y][:, 0]
        return same & (_owner(batch, x) >= 0)[:, None] & (others[y][:, 1] >= 0)

    return of(first, second), of(second, first)


def _owner(batch: Batch, modality: Modality) -> Tensor:
    """[P], whose each part is; -1 for the dummy part."""
    if modality not in batch.streams:
        raise ValueError(f"contrastive.pairs: names {modality}, but batches hold {', '.join(batch.streams)}")
    return batch.streams[modality].owner


def _concept(batch: Batch, modality: Modality) -> Tensor:
    """[P], the concept of each part's sample; 0 for the dummy part, whose owner -1 finds the one put last."""
    return torch.cat([batch.concept, batch.concept.new_zeros(1)])[_owner(batch, modality)]


def _anchors(*positive: Tensor) -> int:
    """How many anchors have a positive."""
    return sum(int(of_each.any(dim=1).sum()) for of_each in positive)
