"""Quantized weights as they stand in a file."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.converters import packing


def test_two_to_a_byte_by_hand() -> None:
    packed = packing.pack(torch.tensor([1, -1, 7, -8, 3], dtype=torch.int8))
    assert packed.tolist() == [0xF1, 0x87, 0x03]


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=65))
def test_what_was_packed_comes_back(values: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.int8).view(1, -1)
    packed = packing.pack(tensor)
    assert packed.numel() == (len(values) + 1) // 2
    assert torch.equal(packing.unpack(packed, tensor.shape), tensor)


def test_integers_and_scales_stand_for_weights_by_hand() -> None:
    integers = torch.tensor([[1, -2, 3, 4]], dtype=torch.int8)
    stored = {
        "a.weight.int4": packing.pack(integers),
        "a.weight.scale": torch.tensor([[0.5, 2.0]]),
        "b.scale": torch.ones(3),  # of no quantized weight
    }
    full = packing.in_full(stored, {"a.weight": torch.Size([1, 4])})
    assert full["a.weight"].tolist() == [[0.5, -1.0, 6.0, 8.0]]
    assert full["b.scale"] is stored["b.scale"]
    assert set(full) == {"a.weight", "b.scale"}
