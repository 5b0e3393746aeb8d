"""Rotary positions, merging, coordinates and the stack against values worked by hand."""

import math

import pytest
import torch

from mmfusion.models.attention.executors import EXECUTORS
from mmfusion.models.attention.rules import Document
from mmfusion.models.layers import (
    Attention,
    CoordinateEncoding,
    GatedMLP,
    Merge,
    Transformer,
    one_part_a_row,
    rotary_angles,
    rotate,
)


def test_rotation_is_multiplication_of_complex_numbers():
    x = torch.randn(2, 3, 5, 8)
    position = torch.randint(0, 50, (2, 5))
    got = rotate(x, rotary_angles(position, 8, base=10_000.0))
    frequency = torch.tensor([10_000.0 ** (-2 * i / 8) for i in range(4)])
    turn = torch.polar(torch.ones(2, 1, 5, 4), position[:, None, :, None] * frequency)
    turned = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(got, torch.cat([turned.real, turned.imag], dim=-1))


def test_rotary_products_know_only_the_distance():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i: int, j: int) -> float:
        at = [rotary_angles(torch.tensor([[n]]), 8, base=100.0) for n in (i, j)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)


def test_gated_mlp_by_hand():
    mlp = GatedMLP(width=1, hidden=1)
    with torch.no_grad():
        mlp.gate_and_up.weight.copy_(torch.tensor([[1.0], [3.0]]))
        mlp.out.weight.fill_(2.0)
    silu = 2.0 / (1 + math.exp(-2.0))
    assert mlp(torch.tensor([[2.0]])).item() == pytest.approx(2.0 * silu * 6.0)


def test_merge_by_hand():
    merge = Merge(width=1, merge=2)
    assert isinstance(merge.project, torch.nn.Linear)
    with torch.no_grad():
        merge.project.weight.copy_(torch.tensor([[1.0, 10.0]]))
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]])
    coords = torch.arange(5.0)[None, :, None].expand(1, 5, 4)
    valid = torch.tensor([[True, True, False, True, False]])
    tokens, places, real = merge(x, coords, valid)
    assert tokens.flatten().tolist() == [21.0, 40.0, 0.0]
    assert places[0, :, 1].tolist() == [0.5, 3.0, 0.0]
    assert real.tolist() == [[True, True, False]]


def test_merge_of_one_changes_nothing():
    x, coords, valid = torch.randn(1, 3, 2), torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)
    assert Merge(width=2, merge=1)(x, coords, valid) == (x, coords, valid)


def test_coordinates_by_hand():
    encoding = CoordinateEncoding(width=4, wavelengths={3: (2.0, 8.0)}, bands=2)
    with torch.no_grad():
        encoding.project.weight.copy_(torch.eye(4))
    got = encoding(torch.tensor([9.0, 9.0, 9.0, 1.0]))
    expected = [math.sin(math.pi), math.sin(math.pi / 4), math.cos(math.pi), math.cos(math.pi / 4)]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_a_part_without_valid_patches_is_finite_and_passes_finite_gradients():
    transformer = Transformer(
        width=8, depth=2, heads=2, kv_heads=2, mlp_ratio=2.0, rule=Document(), executor="sdpa", rope_base=None
    )
    x = torch.randn(2, 3, 8, requires_grad=True)
    out = transformer(x, one_part_a_row(torch.tensor([[False] * 3, [True] * 3])))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="width 10 must divide by heads 4"):
        Attention(10, 4, 4, EXECUTORS["sdpa"])
    with pytest.raises(ValueError, match="head width"):
        Transformer(
            width=6, depth=1, heads=2, kv_heads=1, mlp_ratio=2.0, rule=Document(), executor="sdpa", rope_base=10.0
        )
