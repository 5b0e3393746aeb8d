"""Scales that heed what weights are multiplied with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfusion.converters.calibration import calibrate, fit_scale
from mmfusion.converters.quantize import Quantize
from mmfusion.converters.rounding import Rounding
from mmfusion.errors import UserError
from tests.models.tiny_multimodal import tiny_batch, tiny_model


def rounded(weight: Tensor, scheme: Any = "int4", group: int = 8) -> Any:
    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = nn.Parameter(weight.clone())
    Rounding(scheme, table=False, group=group).convert(layer, ["0"])
    return layer[0].weight


def test_mean_squares_of_inputs_by_hand() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, batch: Any) -> None:
            self.layer(batch.x)
            self.layer(batch.x[:1])

    class Given:
        keys = ("a",)
        x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])

    found: Any = calibrate(Twice(), [Given()])  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found["layer"], torch.tensor([(1 + 9 + 1) / 3, (4 + 0 + 4) / 3]))


def test_a_weight_far_from_all_others_is_cut_where_its_input_is_small() -> None:
    weight = torch.tensor([[3.0, 0.31, -0.29, 0.33, 0.3, -0.32, 0.28, -0.3]])
    moment = torch.tensor([1e-6, *[1.0] * 7])
    to_nearest, fitted = rounded(weight), rounded(weight)
    fit_scale(fitted, weight, moment)

    def error(held: Any) -> float:
        return float(((held.dequantize() - weight).square() * moment).sum())

    assert error(fitted) < 0.5 * error(to_nearest)
    assert float(fitted.scale) < float(to_nearest.scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["int4", "int8"]))
def test_a_fitted_scale_is_never_worse(seed: int, scheme: str) -> None:
    torch.manual_seed(seed)
    weight, moment = torch.randn(3, 16), torch.rand(16)
    to_nearest, fitted = rounded(weight, scheme), rounded(weight, scheme)
    fit_scale(fitted, weight, moment)
    errors = [((held.dequantize() - weight).square() * moment).sum() for held in (fitted, to_nearest)]
    assert errors[0] <= errors[1] * (1 + 1e-5)


def test_a_sample_that_gives_no_numbers_is_named() -> None:
    batch = tiny_batch()
    batch.streams["audio"].values[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"encoders.audio.embed is given what is no number; see the samples sample0, "):
        calibrate(tiny_model(), [tiny_batch(), batch])


def test_a_calibrated_model_says_more_of_what_the_full_one_says() -> None:
    model, batch = tiny_model().eval(), tiny_batch()
    with torch.no_grad():
        full = model(batch).hidden
        moments = calibrate(model, [batch])
        said = [
            Quantize(scheme="int4", group=16).convert(tiny_model().eval(), given)(batch).hidden
            for given in (None, moments)
        ]
    far = [float((one - full).norm()) for one in said]
    assert far[1] < far[0]
