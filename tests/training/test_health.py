"""Ranks by hand, padding by hand, and a run whose sickness is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmfusion.training.health import effective_rank, padding
from mmfusion.training.speed import _measured, matrix_flops
from mmfusion.types import Batch, Patches, Rows


def test_the_effective_rank_by_hand() -> None:
    assert effective_rank(torch.ones(8, 4)) == pytest.approx(1.0)  # collapsed: one direction
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    values = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(values) == pytest.approx(math.exp(entropy))


def test_padding_is_the_share_of_places_that_hold_nothing() -> None:
    nothing: Any = None
    valid = torch.tensor([[True, True, True, True], [True, False, False, False]])
    patches = Patches(values=nothing, coords=nothing, valid=valid, owner=torch.tensor([0, 1]))
    document = torch.tensor([[0, 0, 1, -1, -1]])
    rows = Rows(
        ids=nothing, labels=nothing, document=document, position=nothing, slot=nothing, answer=nothing,
        owner=nothing, of=nothing, score=nothing,
    )  # fmt: skip
    batch = Batch(streams={"image": patches}, rows=rows, keys=("a", "b"), concept=nothing, seeds=nothing)
    assert padding(batch) == pytest.approx({"image": 3 / 8, "rows": 2 / 5})


def test_measuring_the_peak_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _measured.cache_clear()
    assert matrix_flops(torch.device("cpu"), torch.float32) > 0
    assert torch.equal(torch.get_rng_state(), before)
