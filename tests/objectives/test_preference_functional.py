"""The equations of preferences against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmfusion.objectives.functional import (
    bradley_terry,
    clipped_policy_loss,
    dpo,
    group_advantage,
    ipo,
    kto,
    reverse_kl,
    simpo,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# log-ratios: 0.5 of the chosen and -0.3 of the rejected answer; 1.0 and 2.0
POLICY = torch.tensor([[-2.0, -3.0], [-4.0, -5.0]])
REFERENCE = torch.tensor([[-2.5, -2.7], [-5.0, -7.0]])
LENGTH = torch.tensor([[2, 3], [4, 5]])


def test_dpo_by_hand() -> None:
    got = dpo(POLICY, REFERENCE, LENGTH, beta=0.5).tolist()
    assert got == pytest.approx([-math.log(sigmoid(0.4)), -math.log(sigmoid(-0.5))])
    smoothed = dpo(POLICY, REFERENCE, LENGTH, beta=0.5, label_smoothing=0.1).tolist()
    first = -0.9 * math.log(sigmoid(0.4)) - 0.1 * math.log(sigmoid(-0.4))
    assert smoothed[0] == pytest.approx(first)
    by_piece = dpo(POLICY, REFERENCE, LENGTH, beta=0.5, per_piece=True).tolist()
    assert by_piece == pytest.approx([-math.log(sigmoid(0.5 * (0.25 + 0.1))), -math.log(sigmoid(0.5 * (0.25 - 0.4)))])


def test_an_anchor_holds_the_chosen_answer() -> None:
    anchored = dpo(POLICY, REFERENCE, LENGTH, beta=0.5, anchor=0.25)
    assert (anchored - dpo(POLICY, REFERENCE, LENGTH, beta=0.5)).tolist() == pytest.approx([0.25, 0.25])


def test_dpo_starts_at_log_two_and_pulls_the_answers_apart() -> None:
    policy = REFERENCE.clone().requires_grad_()
    loss = dpo(policy, REFERENCE, LENGTH, beta=0.1)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    loss.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [pytest.approx([-0.05, 0.05])] * 2


def test_ipo_by_hand() -> None:
    got = ipo(POLICY, REFERENCE, LENGTH, beta=0.5).tolist()
    assert got == pytest.approx([(0.25 + 0.1 - 1) ** 2, (0.25 - 0.4 - 1) ** 2])


def test_simpo_by_hand() -> None:
    """Per piece: -1 and -1; -1 and -1. The second pair is turned round and lengthened: -1 and -0.5."""
    even = simpo(POLICY, REFERENCE, LENGTH, beta=3.0, margin=0.5).tolist()
    assert even == pytest.approx([-math.log(sigmoid(-0.5))] * 2)
    longer = torch.tensor([[2, 3], [4, 10]])
    assert simpo(POLICY, REFERENCE, longer, beta=3.0, margin=0.5).tolist()[1] == pytest.approx(-math.log(sigmoid(-2)))


def test_bradley_terry_by_hand() -> None:
    rewards = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    assert bradley_terry(rewards).tolist() == pytest.approx([-math.log(sigmoid(1.5)), -math.log(sigmoid(-1))])
    with_margin = bradley_terry(rewards, torch.tensor([1.0, 0.0])).tolist()
    assert with_margin == pytest.approx([-math.log(sigmoid(0.5)), -math.log(sigmoid(-1))])


def test_kto_by_hand() -> None:
    policy, reference = torch.tensor([-2.0, -3.0]), torch.tensor([-2.5, -2.7])
    desirable, divergence = torch.tensor([True, False]), torch.tensor(0.2)
    got = kto(policy, reference, desirable, divergence, beta=0.5, undesirable_weight=2.0).tolist()
    assert got == pytest.approx([1 - sigmoid(0.5 * 0.3), 2 * (1 - sigmoid(0.5 * 0.5))])
    below = kto(policy, reference, desirable, torch.tensor(-9.0), beta=0.5).tolist()
    assert below[0] == pytest.approx(1 - sigmoid(0.25))


def test_advantages_are_within_a_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert group_advantage(rewards, scaled=False).tolist() == [[0.75, -0.25, -0.25, -0.25], [0.0] * 4]
    scaled = group_advantage(rewards)
    assert scaled[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)  # its deviation is 0.5
    assert scaled[1].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.56, 0.0),  # grown enough: clipped at 1.28
        (1.25, 2.0, -2.5, -2.5),  # still below it
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),  # shrunk enough: clipped at 0.8
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clipped_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    policy = torch.tensor([math.log(ratio)], requires_grad=True)
    got = clipped_policy_loss(policy, torch.zeros(1), torch.tensor([advantage]), low=0.2, high=0.28)
    got.sum().backward()
    assert policy.grad is not None
    assert (got.item(), policy.grad.item()) == (pytest.approx(loss), pytest.approx(slope))


def test_the_divergence_is_unbiased_and_never_negative() -> None:
    """Of two distributions over three pieces: the mean over what the policy draws is KL(policy ‖ reference)."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    each: Tensor = reverse_kl(policy.log(), reference.log())
    assert (each >= 0).all()
    assert float((policy * each).sum()) == pytest.approx(float((policy * (policy / reference).log()).sum()))
