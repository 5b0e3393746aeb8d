"""Say what a sample shows: next-piece prediction on the rows' labels."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import nn

from mmfusion.objectives.functional import captioning_loss
from mmfusion.types import IGNORE, MODALITIES, Batch, Loss, Modality, Outputs


class Captioning(nn.Module):
    """Cross-entropy of the labelled pieces; the count is the number of labels.

    It reads, through the decoder, every modality that the model has, text excepted: captions are the decoder's own.
    """

    modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name != "text")

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return int((batch.rows.labels != IGNORE).sum())

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        rows = batch.rows
        each = captioning_loss(outputs.hidden, outputs.unembedding, rows.labels, self.label_smoothing)
        owner = rows.owner[rows.document[rows.labels != IGNORE]]
        return {"captioning": Loss(each.sum(), self.count(batch), each.detach(), owner)}
