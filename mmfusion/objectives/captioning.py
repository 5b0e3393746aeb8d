"""Say what a sample shows: next-piece prediction on the rows' labels."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from mmfusion.objectives.functional import captioning_loss
from mmfusion.rows import best
from mmfusion.types import IGNORE, MODALITIES, Batch, Loss, Modality, Outputs, Rows


class Captioning(nn.Module):
    """Cross-entropy of the labelled pieces; the count is the number of labels.

    It reads, through the decoder, every modality that the model has, text excepted: captions are the decoder's own. Of
    several answers to one prompt only the best is learnt.
    """

    modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name != "text")
    embeddings: tuple[Modality, ...] = ()

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return int((learnt_labels(batch.rows) != IGNORE).sum())

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        rows, labels = batch.rows, learnt_labels(batch.rows)
        each = captioning_loss(outputs.hidden, outputs.unembedding, labels, self.label_smoothing)
        owner = rows.owner[rows.document[labels != IGNORE]]
        return {"captioning": Loss(each.sum(), len(each), each.detach(), owner)}


def learnt_labels(rows: Rows) -> Tensor:
    """labels[R, L] without those of answers that another one to the same prompt is better than."""
    learnt = torch.cat([best(rows), rows.score.new_ones(1, dtype=torch.bool)])  # -1: the prompt's
    return torch.where(learnt[rows.answer], rows.labels, IGNORE)
