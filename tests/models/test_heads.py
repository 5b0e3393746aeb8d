"""The placed head: blind to padding and to the order of tokens, but not to their place."""

import dataclasses
import math

import pytest
import torch

from mmfusion.models.heads import BANDWIDTH, PlacedHead
from mmfusion.types import Tokens


def tokens(P: int = 2, M: int = 6) -> Tokens:
    torch.manual_seed(0)
    coords = torch.zeros(P, M, 4)
    coords[..., 1], coords[..., 2] = torch.arange(M) // 3, torch.arange(M) % 3
    return Tokens(torch.randn(P, M, 8), coords, torch.ones(P, M, dtype=torch.bool), torch.arange(P))


def head(anchors: tuple[int, int, int, int] = (1, 2, 3, 1)) -> PlacedHead:
    torch.manual_seed(1)
    return PlacedHead(width=8, out=5, anchors=anchors)


def test_weights_by_hand():
    """Three tokens at times 2, 3 and 6 stand at 0, 1/4 and 1 of the part; the anchors at 0 and 1."""
    coords = torch.tensor([[[2.0, 0, 0, 0], [3.0, 0, 0, 0], [6.0, 0, 0, 0], [99.0, 9, 9, 9]]])
    valid = torch.tensor([[True, True, True, False]])
    got = head((2, 1, 1, 1)).weights(coords, valid)[0]
    near = [[math.exp(-((spot - anchor) ** 2) / (2 * BANDWIDTH**2)) for spot in (0, 0.25, 1)] for anchor in (0, 1)]
    expected = [[w / sum(row) for w in row] + [0.0] for row in near]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_one_anchor_is_the_plain_average():
    part = tokens()
    weights = head((1, 1, 1, 1)).weights(part.coords, part.valid)
    torch.testing.assert_close(weights, torch.full((2, 1, 6), 1 / 6))


def test_unit_length():
    torch.testing.assert_close(head()(tokens()).norm(dim=-1), torch.ones(2))


def test_padding_changes_nothing():
    part = tokens()
    wide = Tokens(
        torch.cat([part.x, 9 * torch.randn(2, 3, 8)], dim=1),
        torch.cat([part.coords, torch.full((2, 3, 4), 50.0)], dim=1),
        torch.cat([part.valid, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
        part.owner,
    )
    torch.testing.assert_close(head()(wide), head()(part))


def test_order_means_nothing_and_place_does():
    part, order = tokens(), [3, 1, 5, 0, 2, 4]
    moved = dataclasses.replace(part, x=part.x[:, order], coords=part.coords[:, order])
    torch.testing.assert_close(head()(moved), head()(part))
    swapped = dataclasses.replace(part, x=part.x[:, order])
    assert (head()(swapped) - head()(part)).abs().max() > 0.05
    averaging = head((1, 1, 1, 1))
    torch.testing.assert_close(averaging(swapped), averaging(part))


def test_a_part_without_valid_tokens_is_finite_and_passes_no_gradient():
    part = tokens()
    x = part.x.clone().requires_grad_()
    out = head()(dataclasses.replace(part, x=x, valid=torch.zeros_like(part.valid)))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert not x.grad.any()


def test_four_anchor_counts_are_asked_for():
    with pytest.raises(ValueError, match="time, row, column and channel"):
        PlacedHead(width=8, out=5, anchors=[3, 3])
