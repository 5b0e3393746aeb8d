"""What reward an answer has, and what a reward model learns of pairs."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from test_preference import given, rows

from mmfusion.objectives.reward import Reward, reward_of_answers
from mmfusion.types import Loss, Outputs

PIECE = 5


def objective(margin: float = 0.0) -> Reward:
    made = Reward(margin=margin)
    made.tokenizer = SimpleNamespace(score=PIECE)
    return made


def outputs(*rewards: float) -> Outputs:
    """Of the five answers of `rows`, at whose last places alone the hidden state has something to say."""
    hidden = torch.full((1, 12, 1), 100.0)
    hidden[0, [2, 4, 6, 9, 11], 0] = torch.tensor(rewards, dtype=torch.float32)
    unembedding = torch.zeros(6, 1)
    unembedding[PIECE] = 2.0
    return Outputs({}, {}, hidden.requires_grad_(), unembedding.requires_grad_())


def values(losses: dict[str, Loss]) -> dict[str, list[float]]:
    return {name.partition("/")[2]: loss.each.tolist() for name, loss in losses.items() if loss.each is not None}


def test_the_reward_is_the_logit_of_its_piece_at_an_answers_last_place() -> None:
    assert reward_of_answers(outputs(1, 2, 3, -4, 5), rows(), PIECE).tolist() == [2, 4, 6, -8, 10]
    assert reward_of_answers(outputs(1, 2, 3, -4, 5), rows(), 0).tolist() == [0] * 5


def test_the_better_answer_is_to_have_more_by_the_margin_for_each_point_of_score() -> None:
    """Pairs are answers 1 over 0, scores one apart, and 3 over 4, scores three apart."""
    made, _ = given()
    losses = objective(margin=0.5)(outputs(1, 2, 3, 4, 4), made)
    told = values(losses)
    expected = [math.log1p(math.exp(-(2 - 0.5))), math.log1p(math.exp(-(0 - 1.5)))]
    assert told[""] == pytest.approx(expected)
    assert float(losses["reward"].sum.detach()) == pytest.approx(sum(expected))
    assert told["accuracy"] == [1, 0]  # a tie is wrong
    assert (told["margin"], told["chosen"], told["rejected"]) == ([2, 0], [4, 8], [2, 8])
    assert all(loss.count == 2 and loss.owner is not None for loss in losses.values())
    assert [loss.owner.tolist() for loss in losses.values() if loss.owner is not None] == [[0, 2]] * 5
    assert [name for name, loss in losses.items() if loss.trained] == ["reward"]
    assert objective().count(made) == 2


def test_its_gradient_pulls_the_rewards_of_a_pair_apart_and_leaves_others_alone() -> None:
    made, _ = given()
    said = outputs(1, 2, 3, 4, 4)
    objective()(said, made)["reward"].sum.backward()
    assert said.hidden.grad is not None
    gradient = said.hidden.grad[0, :, 0]
    right, even = 1 / (1 + math.exp(2)), 0.5  # sigmoid(-difference), times 2 of the embedding
    assert gradient[[2, 4, 9, 11]].tolist() == pytest.approx([2 * right, -2 * right, -2 * even, 2 * even])
    assert int((gradient != 0).sum()) == 4


def test_a_batch_without_pairs_has_a_loss_of_nothing() -> None:
    made, said = given()
    nothing = dataclasses.replace(made, rows=dataclasses.replace(made.rows, of=torch.tensor([0, 1, 1, 1, 2])))
    losses = objective()(said, nothing)
    assert (float(losses["reward"].sum.detach()), losses["reward"].count) == (0.0, 0)
    losses["reward"].sum.backward()  # still a gradient, of zeros


def test_without_a_tokenizer_it_says_so() -> None:
    made, said = given()
    with pytest.raises(ValueError, match="give the tokenizer"):
        Reward()(said, made)
