"""Answers to prompts that are not theirs, and what is learnt of single answers."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_preference import given, rows
from torch import Tensor

from mmfusion.data.batching import Collate, Document, Prepared, Turn
from mmfusion.objectives.functional import kto
from mmfusion.objectives.kto import Kto, judged, mismatched
from mmfusion.objectives.preference import log_probability_of_answers
from mmfusion.types import Batch, Outputs, Rows

Scored = tuple[tuple[int, ...], float]


def documents() -> list[Document]:
    """Prompts and answers of several lengths: a pair, one answer, none, a conversation, three answers, a pair."""
    answers: list[tuple[Scored, ...]] = [
        (((20, 21), 1.0), ((22,), 0.0)),
        (((30, 31, 32), 0.0),),
        (),
        (),
        (((40,), 0.2), ((41, 42), 0.9), ((43, 44, 45, 46), 0.5)),
        (((50, 51), -1.0), ((52, 53), 2.0)),
    ]
    asked = [(10,), (11, 12, 13), (14,), (15,), (16, 17), (18, 18, 18, 18, 18)]
    return [
        Document((Turn((prompt,), (60,) if number == 3 else None),), of_one)
        for number, (prompt, of_one) in enumerate(zip(asked, answers, strict=True))
    ]


def laid(made: list[Document], row_length: int = 24) -> Batch:
    pieces: Any = SimpleNamespace(pad=0, begin=1, end=2, user=3, assistant=4)
    return Collate({}, pieces, row_length)([Prepared(str(i), i, i, (), (one,)) for i, one in enumerate(made)])


def by_answer(made: Rows, first: int = 0) -> dict[tuple[int, tuple[int, ...]], list[list[int]]]:
    """ids, labels and positions of each answer from `first` on, by its document and what it says."""
    found = {}
    for number in range(first, len(made.of)):
        places = made.answer == number
        if places.any():
            fields = [field[places].tolist() for field in (made.ids, made.labels, made.position, made.slot)]
            (document,) = set(made.document[places].tolist())
            assert document == int(made.of[number])
            found[document, tuple(fields[0])] = fields
    return found


def test_mismatched_answers_are_laid_out_as_if_they_were_the_next_documents_own() -> None:
    made = laid(documents()).rows
    K = len(made.of)
    view = mismatched(made)
    scored = [0, 1, 4, 5]  # the last one's go to the first
    turned = documents()
    for before, after in zip(scored, scored[1:] + scored[:1], strict=True):
        turned[after] = dataclasses.replace(documents()[after], answers=documents()[before].answers)
    expected = {which: of for which, of in by_answer(laid(turned).rows).items() if which[0] in scored}
    assert by_answer(view, K) == expected
    assert judged(made).tolist() == [0, 1, 2, 5, 6, 7, 8, 9]  # without the empty one's and the conversation's
    L = made.ids.shape[1]
    for name in ("ids", "labels", "document", "position", "slot", "answer"):
        assert torch.equal(getattr(view, name)[:, :L], getattr(made, name))
    rows_of = [set(torch.nonzero(view.document == number)[:, 0].tolist()) for number in range(len(made.owner))]
    assert all(len(where) == 1 for where in rows_of)  # beside their prompt
    assert view.score.tolist() == made.score.tolist() * 2


def test_without_scored_answers_nothing_is_added() -> None:
    made = laid([documents()[3]]).rows
    view = mismatched(made)
    assert view.ids.shape == made.ids.shape
    assert Kto(loss=kto).count(laid([documents()[3]])) == 0


def viewed(seed: int = 0) -> tuple[Batch, Outputs, Batch]:
    made, _ = given(seed)
    view = Kto(loss=kto).views(made)
    torch.manual_seed(seed)
    shape = view.rows.ids.shape
    return made, Outputs({}, {}, torch.randn(*shape, 4, requires_grad=True), torch.randn(6, 4)), view


def test_the_loss_of_each_answer_and_what_is_told() -> None:
    """Of `rows` answers 0, 1 and 3, 4 are pairs, 1 and 3 the better ones; answer 2 is a document's own."""
    made, outputs, view = viewed()
    objective = Kto(loss=partial(kto, beta=0.5, desirable_weight=2.0))
    before = dataclasses.replace(outputs, hidden=outputs.hidden.detach() * 0.5)
    objective.frozen = lambda batch: before
    losses = objective(outputs, view)
    gain = (log_probability_of_answers(outputs, view.rows) - log_probability_of_answers(before, view.rows)).tolist()
    own, others = gain[:5], [gain[5 + k] for k in (0, 1, 3, 4)]
    z = sum(others) / 4
    assert z != pytest.approx(sum(own[k] for k in (0, 1, 3, 4)) / 4)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    held = max(0.0, z)
    expected = [
        1 - sigmoid(0.5 * (held - own[0])),
        2 * (1 - sigmoid(0.5 * (own[1] - held))),
        2 * (1 - sigmoid(0.5 * (own[3] - held))),
        1 - sigmoid(0.5 * (held - own[4])),
    ]
    assert losses["kto"].each is not None
    assert losses["kto"].each.tolist() == pytest.approx(expected, abs=1e-6)
    assert objective.count(made) == losses["kto"].count == 4
    told = {name.partition("/")[2]: loss.each.tolist() for name, loss in losses.items() if loss.each is not None}
    assert told["divergence"] == pytest.approx([z] * 4, abs=1e-6)
    assert told["desirable"] == pytest.approx([own[1], own[3]], abs=1e-6)
    assert told["undesirable"] == pytest.approx([own[0], own[4]], abs=1e-6)
    assert told["margin"] == pytest.approx([own[1] - own[0], own[3] - own[4]], abs=1e-6)
    assert told["accuracy"] == [float(own[1] > own[0]), float(own[3] > own[4])]
    owners = {name: loss.owner.tolist() for name, loss in losses.items() if loss.owner is not None}
    assert (owners["kto"], owners["kto/margin"], owners["kto/desirable"]) == ([0, 0, 2, 2], [0, 2], [0, 2])


def test_no_gradient_goes_through_answers_to_other_prompts() -> None:
    _, outputs, view = viewed()
    objective = Kto(loss=kto)
    objective.frozen = lambda batch: dataclasses.replace(outputs, hidden=outputs.hidden.detach() * 0.5)
    objective(outputs, view)["kto"].sum.backward()
    assert outputs.hidden.grad is not None
    moved = outputs.hidden.grad[0].any(dim=-1)
    answers = view.rows.answer[0]
    labelled = view.rows.labels[0] >= 0
    assert torch.equal(moved, labelled & (answers >= 0) & (answers < 5) & (answers != 2))


def test_a_single_answer_is_desirable_above_a_half_and_of_a_pair_the_better_one() -> None:
    seen: dict[str, Tensor] = {}

    def loss(policy: Tensor, reference: Tensor, desirable: Tensor, divergence: Tensor) -> Tensor:
        seen["desirable"] = desirable
        return policy

    objective = Kto(loss=loss)
    batch = objective.views(laid(documents()))
    outputs = Outputs({}, {}, torch.randn(*batch.rows.ids.shape, 4), torch.randn(64, 4))
    objective.frozen = lambda batch: outputs
    objective(outputs, batch)
    assert seen["desirable"].tolist() == [True, False, False, False, True, False, False, True]
    better = dataclasses.replace(rows(), score=torch.tensor([0.7, 0.9, 1.0, 0.2, 0.1]))
    batch = objective.views(dataclasses.replace(given()[0], rows=better))
    objective.frozen = lambda batch: viewed()[1]
    objective(viewed()[1], batch)
    assert seen["desirable"].tolist() == [False, True, True, False]
