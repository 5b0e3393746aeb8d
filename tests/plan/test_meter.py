"""What the meter says of layers that can be worked out by hand, with numbers and without."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfusion.models.layers import recompute
from mmfusion.plan.meter import Meter

ROWS, IN, OUT = 5, 3, 7


def metered(parts: dict[str, nn.Module], *, fake: bool = False, again: bool = False) -> Meter:
    """5 x 3 numbers through the parts, one after the other."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with mode:
        for part in parts.values():
            part.to_empty(device="cpu")
    if again:
        for part in parts.values():
            recompute(part)
    meter = Meter(parts)
    x = torch.zeros(ROWS, IN)
    with meter.counting():
        for part in parts.values():
            x = part(x)
        total = x.sum()
        meter.begin_backward()
        total.backward()
    return meter


def test_flops_of_linear_layers_stand_with_their_part() -> None:
    for fake in (False, True):
        meter = metered({"first": nn.Linear(IN, OUT), "second": nn.Linear(OUT, 2, bias=False)}, fake=fake)
        first, second = 2 * ROWS * IN * OUT, 2 * ROWS * OUT * 2
        assert meter.forward == {"first": first, "second": second, "rest": 0}
        assert meter.backward == {"first": first, "second": 2 * second, "rest": 0}  # the input wants no gradient


def test_what_a_part_saves_is_counted_once_and_weights_are_not() -> None:
    meter = metered({"first": nn.Linear(IN, OUT), "tanh": nn.Tanh(), "twice": nn.Linear(OUT, 2)})
    assert meter.saved == {"first": ROWS * IN * 4, "tanh": ROWS * OUT * 4}  # tanh's output is the next one's input


def test_recomputing_costs_a_forward_and_saves_what_is_inside() -> None:
    def stack() -> dict[str, nn.Module]:
        return {"stack": nn.Sequential(nn.Linear(IN, 64), nn.GELU(), nn.Linear(64, IN))}

    plain, again = metered(stack(), fake=True), metered(stack(), fake=True, again=True)
    assert again.saved["stack"] == ROWS * IN * 4
    assert plain.saved["stack"] == ROWS * (IN + 2 * 64) * 4
    assert again.forward == plain.forward
    assert plain.backward["stack"] < again.backward["stack"] <= plain.backward["stack"] + plain.forward["stack"]


def test_the_peak_is_the_most_that_was_alive() -> None:
    class Grow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.repeat(1, 100)
            return wide.sum() * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

    meter = metered({"grow": Grow()})
    assert 400 * ROWS * IN <= meter.peak < 410 * ROWS * IN


def test_a_real_mask_picks_from_what_has_no_numbers() -> None:
    class Pick(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)[torch.tensor([True, False, True, True, False])]

    assert metered({"pick": Pick(IN, OUT)}, fake=True).forward["pick"] == 2 * ROWS * IN * OUT
