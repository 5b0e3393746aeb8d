"""Prefer the better of two answers: a loss of `functional` on what the model and a reference think of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mmfusion.objectives.functional import log_probability
from mmfusion.types import IGNORE, MODALITIES, Batch, Loss, Modality, Outputs, Rows


class Preference(nn.Module):
    """A `loss` of pairs (`functional.dpo`, `functional.ipo`, or one of your own with their arguments).

    A pair is a document with two answers of different scores, the higher of which was chosen; others are left alone.
    The `reference` is the model as it was at the start; a loss that asks for none gets zeros for it.

    Beside the loss it tells, by source too: the share of pairs whose chosen answer gained more on the reference than
    the rejected one (`accuracy`, ties are wrong), by how many nats (`margin`), the log-probabilities of both, their
    lengths in pieces, and the divergence from the reference at each piece of the answers (`kl`, in nats).
    """

    modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name != "text")

    def __init__(self, *, loss: Callable[..., Tensor], reference: bool = True) -> None:
        super().__init__()
        self.loss, self.reference = loss, reference
        self.frozen: Callable[[Batch], Outputs] | None = None  # given by the training module

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return len(pairs(batch.rows))

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        rows = batch.rows
        pair = pairs(rows)  # [n, 2]
        now = _next_pieces(outputs, rows)
        policy, length = of_answers(_said(now, rows), rows), of_answers(torch.ones_like(now[:, 0]), rows)
        reference, divergence = torch.zeros_like(policy), torch.zeros_like(policy)
        if self.frozen is not None:
            with torch.no_grad():
                then = _next_pieces(self.frozen(batch), rows)
                reference = of_answers(_said(then, rows), rows)
                divergence = of_answers((now.exp() * (now - then)).sum(dim=-1), rows)
        each = self.loss(policy[pair], reference[pair], length[pair])
        gain = (policy - reference)[pair].detach()
        margin = gain[:, 0] - gain[:, 1]
        told = {
            "accuracy": (margin > 0).to(margin.dtype),
            "margin": margin,
            "chosen": policy[pair[:, 0]].detach(),
            "rejected": policy[pair[:, 1]].detach(),
            "chosen_pieces": length[pair[:, 0]],
            "rejected_pieces": length[pair[:, 1]],
            "kl": (divergence[pair].sum(dim=1) / length[pair].sum(dim=1)),
        }
        owner = rows.owner[rows.of[pair[:, 0]]]
        return {"preference": Loss(each.sum(), len(pair), each.detach(), owner), **tell("preference", told, owner)}


def tell(name: str, told: Mapping[str, Tensor], owner: Tensor) -> dict[str, Loss]:
    """What the log says beside a loss, `name/…`: values[n], of the samples owner[n]."""
    return {f"{name}/{key}": Loss(each.sum(), len(each), each, owner, trained=False) for key, each in told.items()}


def pairs(rows: Rows) -> Tensor:
    """[n, 2], the numbers of the chosen and of the rejected answer of each document that has just these two."""
    first = torch.nonzero(torch.bincount(rows.of, minlength=len(rows.owner)) == 2).flatten()
    start = torch.searchsorted(rows.of, first)
    both = torch.stack([start, start + 1], dim=1)
    score = rows.score[both]
    both = both[score[:, 0] != score[:, 1]]
    swapped = rows.score[both[:, 0]] < rows.score[both[:, 1]]
    return torch.where(swapped[:, None], both.flip(1), both)


def log_probability_of_answers(outputs: Outputs, rows: Rows) -> Tensor:
    """log p of each answer in nats, [K]."""
    return of_answers(_said(_next_pieces(outputs, rows), rows), rows)


def answer_places(rows: Rows) -> Tensor:
    """[R, L], the places that must say a piece of an answer; labels at a prompt's places are nobody's."""
    return (rows.labels != IGNORE) & (rows.answer >= 0)


def _next_pieces(outputs: Outputs, rows: Rows) -> Tensor:
    """log p of every piece at the n labelled places, [n, V]."""
    return log_probability(outputs.hidden[answer_places(rows)], outputs.unembedding)


def _said(each: Tensor, rows: Rows) -> Tensor:
    """Of log p[n, V] those of the pieces that are said, [n]."""
    return each.gather(1, rows.labels[answer_places(rows)][:, None])[:, 0]


def of_answers(each: Tensor, rows: Rows) -> Tensor:
    """Σ over the labelled places of each answer, [n] to [K]."""
    return each.new_zeros(len(rows.of)).index_add(0, rows.answer[answer_places(rows)], each)
