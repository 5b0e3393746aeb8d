"""Rows taken apart into prompts, prompts with answers put together, and which of several answers is the best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mmfusion.types import IGNORE, Rows


def best(rows: Rows) -> Tensor:
    """[K], whether no other answer to an answer's prompt has a higher score."""
    highest = rows.score.new_full((len(rows.owner),), -torch.inf).scatter_reduce(0, rows.of, rows.score, "amax")
    return rows.score == highest[rows.of]


def one_document_a_row(rows: Rows) -> Rows:
    """The same documents, each in a row of its own, padded at the end.

    Raises ValueError for a document that no row holds: there is nothing to go on from.
    """
    K = len(rows.owner)
    where = [(rows.document == k).nonzero(as_tuple=True) for k in range(K)]
    if empty := [k for k in range(K) if not len(where[k][0])]:
        raise ValueError(f"documents {empty} of {K} have no pieces: a prompt has at least one")
    length = max((len(row) for row, _ in where), default=0)

    def spread(values: Tensor, padding: int) -> Tensor:
        spread_out = values.new_full((K, length), padding)
        for k, place in enumerate(where):
            spread_out[k, : len(place[0])] = values[place]
        return spread_out

    return Rows(
        ids=spread(rows.ids, 0),
        labels=spread(rows.labels, IGNORE),
        document=spread(rows.document, -1),
        position=spread(rows.position, 0),
        slot=spread(rows.slot, -1),
        answer=spread(rows.answer, -1),
        owner=rows.owner,
        of=rows.of,
        score=rows.score,
    )


def standing_open(rows: Rows) -> Tensor:
    """[D], the documents that have no label: prompts that wait for an answer."""
    return torch.bincount(rows.document[rows.labels != IGNORE], minlength=len(rows.owner)) == 0


def prompts(rows: Rows) -> Rows:
    """The documents that stand open, each in a row of its own and numbered anew."""
    numbers = torch.nonzero(standing_open(rows)).flatten()
    number = torch.full((len(rows.owner) + 1,), -1, device=rows.ids.device)  # the last: padding is document -1
    number[numbers] = torch.arange(len(numbers), device=rows.ids.device)
    document = number[rows.document]
    K = len(numbers)
    of = torch.arange(K, device=rows.ids.device)
    kept = dataclasses.replace(
        rows, document=document, answer=document, owner=rows.owner[numbers], of=of, score=rows.score.new_ones(K)
    )
    return one_document_a_row(kept)


def answered(prompts: Rows, answers: Sequence[Sequence[int]]) -> Rows:
    """Prompts, one a row, with as many `answers` each, those to one side by side; every piece of an answer is labelled.

    As `data.batching.lay_out` has it: a prompt's last piece, <|assistant|>, begins each of its answers.
    """
    device, D = prompts.ids.device, len(prompts.owner)
    G = len(answers) // D
    length = (prompts.document >= 0).sum(dim=1).tolist()
    width = max(length[d] - 1 + sum(1 + len(a) for a in answers[d * G : (d + 1) * G]) for d in range(D))
    fields = {"ids": 0, "labels": IGNORE, "document": -1, "position": 0, "slot": -1, "answer": -1}
    made = {name: torch.full((D, width), padding) for name, padding in fields.items()}
    for d in range(D):
        at = length[d] - 1
        for name in ("ids", "document", "position", "slot"):
            made[name][d, :at] = getattr(prompts, name)[d, :at].cpu()
        begin, asked = int(prompts.ids[d, at]), at
        for k in range(d * G, (d + 1) * G):
            stop = at + 1 + len(answers[k])
            made["ids"][d, at:stop] = torch.tensor([begin, *answers[k]])
            made["labels"][d, at : stop - 1] = torch.tensor(answers[k])
            made["position"][d, at:stop] = torch.arange(asked, asked + stop - at)
            made["answer"][d, at:stop] = k
            at = stop
        made["document"][d, :at] = d
    of = torch.arange(D, device=device).repeat_interleave(G)
    moved = {name: values.to(device) for name, values in made.items()}
    return Rows(**moved, owner=prompts.owner, of=of, score=prompts.score.new_zeros(D * G))
