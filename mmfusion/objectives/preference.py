"""Prefer the better of two answers: a loss of `functional` on what the model and a reference think of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmfusion.objectives.functional import captioning_loss, divergence, log_probability
from mmfusion.objectives.kept import Kept
from mmfusion.rows import best
from mmfusion.types import IGNORE, MODALITIES, Batch, Loss, Modality, Outputs, Rows


class Preference(nn.Module):
    """A `loss` of pairs (`functional.dpo`, `functional.ipo`, or one of your own with their arguments).

    Of each document's answers the best was chosen, and makes a pair with each that is not as good; a document's loss is
    the mean over its pairs, so that one with many answers weighs no more than another (Ouyang et al. 2203.02155,
    equation 1). The count is that of documents with a pair. The `reference` is the model as it was at the start; a loss
    that asks for none gets zeros for it.

    Beside the loss it tells, by source too: the share of pairs whose chosen answer gained more on the reference than
    the rejected one (`accuracy`, ties are wrong), by how many nats (`margin`), the log-probabilities of both, their
    lengths in pieces, and the divergence from the reference at each piece of the chosen one (`kl`, in nats).

    With `keep` the reference's log-probabilities are remembered (`Kept`), so that later passes over samples that are
    not augmented do without it; then no `kl` is told, which needs all that it would have said.
    """

    modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name != "text")
    embeddings: tuple[Modality, ...] = ()

    def __init__(self, *, loss: Callable[..., Tensor], reference: bool = True, keep: bool = False) -> None:
        super().__init__()
        self.loss, self.reference, self.kept = loss, reference, Kept() if keep else None
        self.frozen: Callable[[Batch], Outputs] | None = None  # given by the training module

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return compared(batch.rows)

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        rows = batch.rows
        pair = pairs(rows)  # [n, 2]
        policy = log_probability_of_answers(outputs, rows)
        length = of_answers(torch.ones_like(rows.labels[answer_places(rows)], dtype=policy.dtype), rows)
        reference, divergence = torch.zeros_like(policy), torch.zeros_like(policy)
        if self.frozen is not None:
            frozen = self.frozen
            with torch.no_grad():
                if self.kept is not None:
                    reference = self.kept(batch, lambda: log_probability_of_answers(frozen(batch), rows))
                else:
                    then = frozen(batch)
                    reference = log_probability_of_answers(then, rows)
                    divergence = _divergence(outputs, then, rows, pair[:, 0])
        each, document = of_documents(self.loss(policy[pair], reference[pair], length[pair]), pair, rows)
        gain = (policy - reference)[pair].detach()
        margin = gain[:, 0] - gain[:, 1]
        told = {
            "accuracy": (margin > 0).to(margin.dtype),
            "margin": margin,
            "chosen": policy[pair[:, 0]].detach(),
            "rejected": policy[pair[:, 1]].detach(),
            "chosen_pieces": length[pair[:, 0]],
            "rejected_pieces": length[pair[:, 1]],
            "kl": divergence[pair[:, 0]] / length[pair[:, 0]],
        }
        if self.frozen is None or self.kept is not None:
            del told["kl"]
        owner = rows.owner[rows.of[pair[:, 0]]]
        loss = Loss(each.sum(), len(each), each.detach(), rows.owner[document])
        return {"preference": loss, **tell("preference", told, owner)}


def tell(name: str, told: Mapping[str, Tensor], owner: Tensor) -> dict[str, Loss]:
    """What the log says beside a loss, `name/…`: values[n], of the samples owner[n]."""
    return {f"{name}/{key}": Loss(each.sum(), len(each), each, owner, trained=False) for key, each in told.items()}


def pairs(rows: Rows) -> Tensor:
    """[n, 2], the numbers of the chosen and of a rejected answer: a document's best, and each that is not as good."""
    number = torch.arange(len(rows.of), device=rows.of.device)
    is_best = best(rows)
    of, first = rows.of[is_best], rows.of.new_full((len(rows.owner),), len(rows.of))
    first = first.scatter_reduce(0, of, number[is_best], "amin")
    return torch.stack([first[rows.of[~is_best]], number[~is_best]], dim=1)


def compared(rows: Rows) -> int:
    """How many documents have a pair."""
    return len(rows.of[pairs(rows)[:, 0]].unique())


def of_documents(each: Tensor, pair: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The mean over the pairs of each document that has one, from each[n] of pair[n, 2], and which document it is."""
    document, which, pairs_of = rows.of[pair[:, 0]].unique(return_inverse=True, return_counts=True)
    return each.new_zeros(len(document)).index_add(0, which, each / pairs_of[which]), document


def log_probability_of_answers(outputs: Outputs, rows: Rows) -> Tensor:
    """log p of each answer in nats, [K]."""
    labels = torch.where(answer_places(rows), rows.labels, IGNORE)
    return of_answers(-captioning_loss(outputs.hidden, outputs.unembedding, labels), rows)


def _divergence(now: Outputs, then: Outputs, rows: Rows, answers: Tensor) -> Tensor:
    """KL(now ‖ then) of the next pieces, summed over the places of some of the answers, [K]; 0 for the others."""
    places = answer_places(rows) & torch.isin(rows.answer, answers)
    p, q = (log_probability(one.hidden[places], one.unembedding) for one in (now, then))
    return p.new_zeros(len(rows.of)).index_add(0, rows.answer[places], divergence(p, q))


def answer_places(rows: Rows) -> Tensor:
    """[R, L], the places that must say a piece of an answer; labels at a prompt's places are nobody's."""
    return (rows.labels != IGNORE) & (rows.answer >= 0)


def of_answers(each: Tensor, rows: Rows) -> Tensor:
    """Σ over the labelled places of each answer, [n] to [K]."""
    return each.new_zeros(len(rows.of)).index_add(0, rows.answer[answer_places(rows)], each)
