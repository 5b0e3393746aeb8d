"""Which answers are compared with which, and what is told of them."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from tiny_outputs import batch

from mmfusion.objectives.functional import dpo
from mmfusion.objectives.preference import Preference, log_probability_of_answers, pairs
from mmfusion.types import IGNORE, Batch, Outputs, Rows


def rows() -> Rows:
    """Three documents of two, one and two answers, the second and the fourth place of each answer labelled.

    Of the first document the second answer was chosen, of the last the first one; the piece is the answer's number.
    """
    answer = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, -1, 3, 3, 4, 4]])
    document = torch.tensor([[0] * 5 + [1] * 2 + [2] * 5])
    labels = torch.where(answer >= 0, answer, IGNORE)
    labels[0, ::2] = IGNORE
    labels[0, 8] = 3
    zero = torch.zeros_like(answer)
    score = torch.tensor([0.0, 1.0, 1.0, 2.0, -1.0])
    return Rows(zero, labels, document, zero, zero - 1, answer, torch.arange(3), torch.tensor([0, 0, 1, 2, 2]), score)


def given(seed: int = 0) -> tuple[Batch, Outputs]:
    torch.manual_seed(seed)
    made = dataclasses.replace(batch({}, [5, 6, 7]), rows=rows())
    return made, Outputs({}, {}, torch.randn(1, 12, 4, requires_grad=True), torch.randn(6, 4))


def test_the_chosen_answer_stands_first() -> None:
    assert pairs(rows()).tolist() == [[1, 0], [3, 4]]
    even = dataclasses.replace(rows(), score=torch.tensor([1.0, 1.0, 1.0, 2.0, -1.0]))
    assert pairs(even).tolist() == [[3, 4]]
    several = dataclasses.replace(rows(), of=torch.tensor([0, 1, 1, 1, 2]))
    assert pairs(several).tolist() == [[3, 1], [3, 2]]
    best_twice = dataclasses.replace(several, score=torch.tensor([0.0, 2.0, 1.0, 2.0, -1.0]))
    assert pairs(best_twice).tolist() == [[1, 2]]
    assert pairs(dataclasses.replace(rows(), of=torch.tensor([0, 1, 1, 2, 2]), score=torch.ones(5))).tolist() == []


def test_a_document_of_many_pairs_weighs_no_more_than_one_of_a_single_pair() -> None:
    """Answers 0 to 2 of the first document, the last of which is its best; 3 and 4 of the last one."""
    made, outputs = given()
    several = dataclasses.replace(rows(), of=torch.tensor([0, 0, 0, 2, 2]), score=torch.tensor([0.0, 1, 3, 2, -1]))
    made = dataclasses.replace(made, rows=several)

    def loss(policy: torch.Tensor, reference: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return torch.tensor([2.0, 4.0, 8.0])

    found = Preference(loss=loss, reference=False)(outputs, made)["preference"]
    assert found.each is not None
    assert found.owner is not None
    assert (found.each.tolist(), found.owner.tolist()) == ([3, 8], [0, 2])
    assert Preference(loss=loss).count(made) == found.count == 2


def test_at_the_start_nothing_is_gained_and_ties_are_wrong() -> None:
    made, outputs = given()
    objective = Preference(loss=partial(dpo, beta=0.5))
    objective.frozen = lambda _: outputs
    losses = objective(outputs, made)
    assert float(losses["preference"].sum.detach()) == pytest.approx(2 * 0.6931472)
    assert objective.count(made) == losses["preference"].count == 2
    told = {name.partition("/")[2]: loss for name, loss in losses.items() if not loss.trained}
    for name in ("accuracy", "margin", "kl"):
        assert float(told[name].sum) == pytest.approx(0, abs=1e-6)
    assert told["accuracy"].owner is not None
    assert told["accuracy"].owner.tolist() == [0, 2]
    said = log_probability_of_answers(outputs, made.rows)
    assert float(told["chosen"].sum) == pytest.approx(float((said[1] + said[3]).detach()))
    assert float(told["rejected_pieces"].sum) == 2


def test_the_log_probability_of_answers_in_packed_rows() -> None:
    """The embedding is such that the logits at a place are (x, 0): answers 0 and 1 say pieces 0 and 1, once each."""
    made, _ = given()
    hidden = torch.arange(12.0)[None, :, None]
    got = log_probability_of_answers(
        Outputs({}, {}, hidden, torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]])), made.rows
    )
    places = {0: 1, 1: 3, 2: 5}  # of the first three answers' labels
    for answer, x in places.items():
        logits = torch.tensor([float(x), 0, 0, 0, 0])
        assert float(got[answer]) == pytest.approx(float(logits.log_softmax(0)[answer]))
    both = torch.tensor([8.0, 0, 0, 0, 0]).log_softmax(0)[3] + torch.tensor([9.0, 0, 0, 0, 0]).log_softmax(0)[3]
    assert float(got[3]) == pytest.approx(float(both))


def test_a_step_along_the_gradient_prefers_the_chosen() -> None:
    made, outputs = given()
    objective = Preference(loss=dpo)
    before = dataclasses.replace(outputs, hidden=outputs.hidden.detach().clone())
    objective.frozen = lambda _: before
    objective(outputs, made)["preference"].sum.backward()
    assert outputs.hidden.grad is not None
    after = dataclasses.replace(outputs, hidden=before.hidden - outputs.hidden.grad)
    losses = objective(after, made)
    assert float(losses["preference/accuracy"].sum) == 2
    assert float(losses["preference/margin"].sum) > 0
    assert float(losses["preference/kl"].sum) > 0


def test_without_a_reference_the_loss_gets_zeros() -> None:
    made, outputs = given()
    seen = {}

    def loss(policy: torch.Tensor, reference: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        seen.update(policy=policy, reference=reference, length=length)
        return policy[:, 0]

    losses = Preference(loss=loss, reference=False)(outputs, made)
    assert seen["reference"].tolist() == [[0, 0], [0, 0]]
    assert seen["policy"].shape == seen["length"].shape == (2, 2)
    assert "preference/kl" not in losses


def test_a_batch_without_pairs_has_a_loss_of_nothing() -> None:
    made, outputs = given()
    nothing = dataclasses.replace(made, rows=dataclasses.replace(made.rows, score=torch.ones(5)))
    losses = Preference(loss=dpo, reference=False)(outputs, nothing)
    assert (float(losses["preference"].sum.detach()), losses["preference"].count) == (0.0, 0)
    losses["preference"].sum.backward()  # still a gradient, of zeros
