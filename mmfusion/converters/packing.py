"""How quantized weights stand in a file: their integers, two to a byte where they have four bits, and their scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FOUR, EIGHT, SCALE = ".int4", ".int8", ".scale"  # behind the name of a weight


def is_held(weight: Any) -> bool:
    """Whether a weight is a torchao tensor of integers."""
    return hasattr(weight, "qdata")


def of_four_bits(weight: Any) -> bool:
    """Whether a torchao weight holds integers of four bits, which take a byte each in memory."""
    return getattr(weight, "target_dtype", None) == getattr(torch, "int4")  # noqa: B009  (torch's stubs lack it)


def held(name: str, weight: Any) -> dict[str, Tensor]:
    """What is kept of a weight under which name: all of it, or a torchao weight's own integers and scales, whose zero
    points are zero."""
    if not is_held(weight):
        return {name: weight}
    return {name + (FOUR if of_four_bits(weight) else EIGHT): weight.qdata, name + SCALE: weight.scale}


def pack(values: Tensor) -> Tensor:
    """Integers from -8 to 7 of any shape -> uint8 [⌈n / 2⌉], the first in the lower half of a byte."""
    flat = torch.nn.functional.pad(values.flatten(), (0, values.numel() % 2)).view(torch.uint8)
    return (flat[0::2] & 15) | (flat[1::2] << 4)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """What `pack` was given, int8 of `shape`."""
    halves = torch.stack([packed & 15, packed >> 4], dim=-1).flatten()[: shape.numel()].view(shape)
    return (halves ^ 8).view(torch.int8) - 8  # 0 to 7 and -8 to -1


def in_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `held` gave as it is written."""
    return {name: pack(tensor) if name.endswith(FOUR) else tensor for name, tensor in state.items()}


def from_file(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of a file as `held` gave it, of the shape of `like`."""
    return unpack(tensor, like.shape) if name.endswith(FOUR) else tensor
