"""The equations against values worked by hand, plain loops and torch's own cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfusion.objectives.functional import captioning_loss, contrastive_loss, multi_positive_info_nce
from mmfusion.types import IGNORE


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def symmetric(x: Tensor, y: Tensor, positive: Tensor, scale: float = 10.0) -> Tensor:
    def of(anchors: Tensor, others: Tensor, positive: Tensor) -> Tensor:
        everyone = torch.ones(len(others), dtype=torch.bool)
        return contrastive_loss(anchors, others, scale=torch.tensor(scale), positive=positive, candidate=everyone).sum()

    return of(x, y, positive) + of(y, x, positive.T)


def test_info_nce_by_hand():
    """Logits are logarithms of 1, 2, 3, 4, so that probabilities are tenths; without the last column, sixths."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log().expand(4, -1)
    yes, no = True, False
    positive = torch.tensor([[no, yes, no, no], [yes, no, yes, no], [no, yes, no, no], [no, no, no, no]])
    candidate = torch.tensor([[yes] * 4, [yes] * 4, [yes, yes, yes, no], [yes] * 4])
    expected = [-math.log(0.2), -(math.log(0.1) + math.log(0.3)) / 2, -math.log(2 / 6), 0.0]
    assert multi_positive_info_nce(logits, positive, candidate).tolist() == pytest.approx(expected)


def test_one_positive_is_cross_entropy_both_ways():
    torch.manual_seed(0)
    x, y = unit(6, 5), unit(6, 5)
    logits, target = 10 * x @ y.T, torch.arange(6)
    expected = F.cross_entropy(logits, target, reduction="sum") + F.cross_entropy(logits.T, target, reduction="sum")
    torch.testing.assert_close(symmetric(x, y, torch.eye(6, dtype=torch.bool)), expected)


def loops(x: Tensor, y: Tensor, positive: Tensor, scale: float) -> float:
    total = 0.0
    for anchors, others, table in ((x, y, positive), (y, x, positive.T)):
        for i, anchor in enumerate(anchors):
            below = sum(math.exp(scale * float(anchor @ other)) for other in others)
            hits = [j for j in range(len(others)) if table[i, j]]
            total += sum(math.log(below) - scale * float(anchor @ others[j]) for j in hits) / max(len(hits), 1)
    return total


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), P=st.integers(1, 5), Q=st.integers(1, 5), kinds=st.integers(1, 4))
def test_many_positives_in_plain_loops(seed: int, P: int, Q: int, kinds: int):
    torch.manual_seed(seed)
    x, y = unit(P, 4), unit(Q, 4)
    positive = torch.randint(kinds, (P, 1)) == torch.randint(kinds, (1, Q))
    got = symmetric(x, y, positive, scale=7.0)
    assert float(got) == pytest.approx(loops(x, y, positive, 7.0), abs=1e-9)


def test_masked_columns_and_anchors_without_positives_pass_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    positive = torch.tensor([[True, False, False, False], [False] * 4, [False] * 4])
    candidate = torch.tensor([[True, True, True, False], [True] * 4, [False] * 4])
    multi_positive_info_nce(logits, positive, candidate).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).tolist() == [[True, True, True, False], [False] * 4, [False] * 4]


def test_gradients_are_those_of_the_equation():
    torch.manual_seed(0)
    positive = torch.tensor([[True, True, False], [False, True, False]])
    x, y = unit(2, 3).requires_grad_(), unit(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: symmetric(x, y, positive), (x, y))


# -------------------------------------------------------------------------------------------------------- captioning


def caption_case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.tensor([[3, IGNORE, 0, IGNORE], [IGNORE, 6, 6, 2]])
    return torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captioning_is_cross_entropy(smoothing: float):
    hidden, unembedding, labels = caption_case()
    logits = (hidden @ unembedding.T).transpose(1, 2)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(captioning_loss(hidden, unembedding, labels, smoothing).sum(), expected)


def test_captioning_by_hand():
    """Logits 1·w of w = log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8."""
    unembedding = torch.tensor([[1.0], [2.0], [5.0]]).log()
    hidden, labels = torch.ones(1, 3, 1), torch.tensor([[2, IGNORE, 0]])
    expected = -math.log(5 / 8) - math.log(1 / 8)
    assert captioning_loss(hidden, unembedding, labels).sum().item() == pytest.approx(expected)
    # With smoothing .3 a target keeps .7, and each piece gets .1 more.
    uniform = -(math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8)) / 3
    smoothed = captioning_loss(hidden, unembedding, labels, label_smoothing=0.3)
    assert smoothed.sum().item() == pytest.approx(0.7 * expected + 0.3 * 2 * uniform)


def test_places_without_label_pass_no_gradient():
    hidden, unembedding, labels = caption_case()
    hidden.requires_grad_()
    captioning_loss(hidden, unembedding, labels).sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(dim=-1) > 0, labels != IGNORE)


def test_no_label_at_all_is_zero_with_zero_gradients():
    hidden, unembedding, labels = caption_case()
    hidden.requires_grad_()
    unembedding.requires_grad_()
    loss = captioning_loss(hidden, unembedding, torch.full_like(labels, IGNORE)).sum()
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert unembedding.grad is not None
    assert not unembedding.grad.any()
