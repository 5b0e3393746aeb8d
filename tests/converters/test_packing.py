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
