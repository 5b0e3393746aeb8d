"""The training module on its own: what is optimized how, what is frozen, and a loss that is no number."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from mmfusion import config
from mmfusion.cli.session import train
from mmfusion.training.module import TrainingModule, by_source
from mmfusion.training.optim import ParameterGroups
from mmfusion.types import Batch, DataError, Loss


def built(*overrides: str) -> TrainingModule:
    tree = config.plain(config.compose(["paths.run=unused", *overrides]))
    given = config.build_arguments({name: tree[name] for name in ("model", "objective", "optim", "scheduler")}, train)
    module = TrainingModule(
        model=given["model"], objectives=given["objective"], weights={}, optimizer=given["optim"],
        scheduler=given["scheduler"], seed=0,
    )  # fmt: skip
    module.configure_model()
    return module


def test_an_encoder_that_no_objective_reads_is_frozen() -> None:
    module = built("~objective.contrastive")
    frozen = {tuple(name.split(".")[1:3]) for name, p in module.named_parameters() if not p.requires_grad}
    heads = {("heads", name) for name in module.model.heads}
    assert frozen == {("encoders", "text"), *heads}  # captions are the decoder's own, and no embedding is read
    assert not any(p is q for group in ParameterGroups()(module) for p in group["params"]
                   for q in module.model.encoders["text"].parameters())  # fmt: skip


def test_one_seed_one_start() -> None:
    first, again, other = built(), built(), built()
    other._seed = 1
    del other.objectives
    other.configure_model()
    same = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(first.model.decoder.embedding.weight, other.model.decoder.embedding.weight)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_samples() -> None:
    class Broken(nn.Module):
        modalities = ()

        def views(self, batch: Batch) -> Batch:
            return dataclasses.replace(batch)

        def count(self, batch: Batch) -> int:
            return 1

        def forward(self, outputs: object, batch: Batch) -> dict[str, Loss]:
            return {"broken": Loss(torch.tensor(float("nan")), 1)}

    module = built()
    module.objectives = nn.ModuleDict({"broken": Broken()})
    module._weights = {"broken": 1.0}
    module.model.forward = lambda batch: None  # pyright: ignore[reportAttributeAccessIssue]  (what it gives is not read)
    nothing: Any = None
    batch = Batch(
        streams={}, rows=nothing, keys=("a", "b"), concept=torch.zeros(2), seeds=torch.zeros(2), counts={"broken": 1}
    )
    with pytest.raises(DataError, match=r"the loss of step 0 is nan; nothing was updated. Samples: a, b"):
        module.training_step(batch, 0)


def test_a_loss_is_told_apart_by_source_to_the_same_sum() -> None:
    nothing: Any = None
    batch = Batch(
        streams={}, rows=nothing, keys=("a", "b", "c"), concept=nothing, seeds=nothing, sources=("tux", "watch", "tux")
    )
    each, owner = torch.tensor([1.0, 2.0, 4.0, 8.0, 100.0]), torch.tensor([0, 1, 2, 2, -1])
    assert by_source(Loss(each.sum(), 4, each, owner), batch) == {"tux": (13.0, 3), "watch": (2.0, 1)}
    assert by_source(Loss(each.sum(), 4), batch) == {}
    holes = dataclasses.replace(batch, keys=(), sources=())
    assert by_source(Loss(each.sum(), 0, each, torch.full((5,), -1)), holes) == {}
