"""Say what a teacher would say: its distribution of each next piece, and not only the one that came."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mmfusion.objectives.captioning import Captioning, learnt_labels
from mmfusion.objectives.functional import divergence, log_probability
from mmfusion.types import IGNORE, Batch, Loss, Modality, Outputs


class Distillation(nn.Module):
    """KL(teacher ‖ model) of the next piece at each labelled place, in nats (Hinton et al. 1503.02531, temperature 1).

    The count is the number of labels. `teacher` is given to it: the model as it was.
    """

    modalities: tuple[Modality, ...] = Captioning.modalities
    embeddings: tuple[Modality, ...] = ()
    teacher: Callable[[Batch], Outputs] | None = None

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return int((learnt_labels(batch.rows) != IGNORE).sum())

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        if self.teacher is None:
            raise RuntimeError("a Distillation has to be given its teacher")
        places = learnt_labels(batch.rows) != IGNORE
        taught, said = (log_probability(one.hidden[places], one.unembedding) for one in (self.teacher(batch), outputs))
        each = divergence(taught, said)
        owner = batch.rows.owner[batch.rows.document[places]]
        return {"distillation": Loss(each.sum(), len(each), each.detach(), owner)}
