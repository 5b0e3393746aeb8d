"""Say more of what is desirable and less of what is not: a loss of `functional` on single answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmfusion.objectives.preference import Preference, log_probability_of_answers, pairs, tell
from mmfusion.ranks import rows_of_all
from mmfusion.types import IGNORE, Batch, Loss, Modality, Outputs, Rows


class Kto(nn.Module):
    """A `loss` of single answers (`functional.kto`, or one of your own with its arguments).

    Of several answers to one prompt the best is desirable and those not as good are not; any other one is where its
    score is above a half.
    Answers without a score, those of conversations, are left alone. The reference is the model as it was at the start.

    How far the model is from it is estimated, as Ethayarajh et al. 2402.01306 do, by the log-ratio of answers to other
    prompts (`mismatched`): the mean over the micro-batches that all ranks train on at the time, through which no
    gradient goes. One document alone has no other's answers: with few in a micro-batch the estimate is poor.

    Beside the loss it tells, by source too, in nats: that divergence before it is held at 0, by how much the log-ratio
    of desirable and of undesirable answers has grown, and of pairs by how much the better one's has grown more
    (`margin`) and how often (`accuracy`, ties are wrong).
    """

    modalities: tuple[Modality, ...] = Preference.modalities
    embeddings: tuple[Modality, ...] = ()
    reference = True

    def __init__(self, *, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self.frozen: Callable[[Batch], Outputs] | None = None  # given by the training module

    def views(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, rows=mismatched(batch.rows))

    def count(self, batch: Batch) -> int:
        return len(judged(batch.rows))

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        if self.frozen is None:
            raise ValueError("Kto.frozen: is None; give the model to compare with")
        rows, K = batch.rows, len(batch.rows.of) // 2
        given = dataclasses.replace(rows, of=rows.of[:K], score=rows.score[:K])  # without the mismatched
        own, pair = judged(given), pairs(given)
        desirable = given.score > 0.5
        desirable[pair[:, 0]], desirable[pair[:, 1]] = True, False
        policy = log_probability_of_answers(outputs, rows)
        with torch.no_grad():
            reference = log_probability_of_answers(self.frozen(batch), rows)
        gain = (policy - reference).detach()
        divergence = self._mean(gain[K + own])
        each = self.loss(policy[own], reference[own], desirable[own], divergence)
        owner = rows.owner[rows.of]
        losses = {"kto": Loss(each.sum(), len(own), each.detach(), owner[own])}
        losses |= tell("kto", {"divergence": divergence.expand(len(own))}, owner[own])
        for name, those in (("desirable", own[desirable[own]]), ("undesirable", own[~desirable[own]])):
            losses |= tell("kto", {name: gain[those]}, owner[those])
        margin = gain[pair[:, 0]] - gain[pair[:, 1]]
        told = {"margin": margin, "accuracy": (margin > 0).to(margin.dtype)}
        return losses | tell("kto", told, owner[pair[:, 0]])

    def _mean(self, each: Tensor) -> Tensor:
        """The mean of all ranks' values, 0 of none; in validation of this rank's, which has batches of its own."""
        own = torch.stack([each.sum(), torch.ones_like(each).sum()])[None]
        total, count = (rows_of_all(own) if self.training else own).sum(dim=0)
        return total / count.clamp(min=1)


def judged(rows: Rows) -> Tensor:
    """[n], the numbers of the answers that have a score of their own: those whose prompt belongs to no answer."""
    prompted = rows.document[(rows.document >= 0) & (rows.answer < 0)]
    return torch.nonzero(torch.isin(rows.of, prompted))[:, 0]


def mismatched(rows: Rows) -> Rows:
    """The rows with the judged answers of each document set to the prompt of the next too, the last one's to the first.

    They stand behind everything else in the row of that prompt and go on, by position, where it ends: like answers of
    its own they see it and themselves, and nothing sees them. Answer k is there as K + k, in `of` behind all others.
    """
    R, K, D = len(rows.ids), len(rows.of), len(rows.owner)
    own = judged(rows)
    documents = rows.of[own].unique()
    following = torch.arange(D, device=rows.of.device).scatter(0, documents, documents.roll(-1))
    in_row, real = torch.arange(R, device=rows.of.device)[:, None].expand_as(rows.ids), rows.document >= 0
    row_of = torch.zeros_like(rows.owner).scatter(0, rows.document[real], in_row[real])

    places = torch.isin(rows.answer, own)
    document = rows.document[places]
    start = torch.zeros_like(rows.owner)  # of each document's answers
    start = start.scatter_reduce(0, document, rows.position[places], "amin", include_self=False)
    order = row_of[following[document]].argsort(stable=True)
    row = row_of[following[document]][order]
    count = row.bincount(minlength=R)
    column = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]

    def behind(field: Tensor, values: Tensor, padding: int) -> Tensor:
        """field[R, L] with values, one for each of `places`, put behind."""
        more = field.new_full((R, int(count.max())), padding)
        more[row, column] = values[order]
        return torch.cat([field, more], dim=1)

    return Rows(
        ids=behind(rows.ids, rows.ids[places], 0),
        labels=behind(rows.labels, rows.labels[places], IGNORE),
        document=behind(rows.document, following[document], -1),
        position=behind(rows.position, rows.position[places] - start[document] + start[following[document]], 0),
        slot=behind(rows.slot, rows.slot[places], -1),
        answer=behind(rows.answer, K + rows.answer[places], -1),
        owner=rows.owner,
        of=torch.cat([rows.of, following[rows.of]]),
        score=rows.score.repeat(2),
    )
