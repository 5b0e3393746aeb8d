"""The training module on its own: what is optimized how, what is frozen, and a loss that is no number."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from mmfusion import config
from mmfusion.cli.session import train
from mmfusion.training.module import TrainingModule
from mmfusion.training.optim import one_cycle, parameter_groups
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


def test_matrices_decay_and_vectors_do_not() -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    layer[1].weight.requires_grad_(False)
    decaying, rest = parameter_groups(layer)
    assert [p.shape for p in decaying["params"]] == [(2, 3)]
    assert [p.shape for p in rest["params"]] == [(2,), (2,)]
    assert rest["weight_decay"] == 0
    assert "weight_decay" not in decaying


def test_an_encoder_that_no_objective_reads_is_frozen() -> None:
    module = built("~objective.contrastive")
    frozen = {name.split(".")[2] for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"text"}  # captions are the decoder's own
    assert not any(p is q for group in parameter_groups(module) for p in group["params"]
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


@pytest.mark.parametrize("steps", [1, 2, 6, 10, 20, 100])
def test_the_rate_rises_falls_and_ends_at_nothing(steps: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = one_cycle(optimizer, max_lr=0.5, total_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    assert max(rates) <= 0.5
    if steps >= 20:
        assert max(rates) == pytest.approx(0.5, rel=0.05)
        assert rates[-1] < 1e-3
