"""Which parameters are trained and how fast: decay, freezing, rates by part and layer, schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmfusion.errors import UserError
from mmfusion.training.optim import ParameterGroups, apply_shares, constant, one_cycle


class Stack(nn.Module):
    """An embedding, three blocks and a norm, in the order in which a model uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(2)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.encoders = nn.ModuleDict({"image": Stack(), "audio": Stack()})
        self.model.decoder = Stack()
        self.objectives = nn.ModuleDict({"contrastive": nn.Linear(1, 1)})


def rates(groups: ParameterGroups, module: nn.Module, lr: float = 1.0) -> dict[str, float]:
    """The learning rate of each parameter that is trained."""
    groups.hold(module)
    optimizer = apply_shares(torch.optim.AdamW(groups(module), lr=lr))
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert "share" not in optimizer.state_dict()["param_groups"][0]
    return {name: found[id(p)] for name, p in module.named_parameters() if id(p) in found}


def test_matrices_decay_and_vectors_do_not() -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    layer[1].weight.requires_grad_(False)
    decaying, rest = ParameterGroups()(layer)
    assert [p.shape for p in decaying["params"]] == [(2, 3)]
    assert [p.shape for p in rest["params"]] == [(2,), (2,)]
    assert rest["weight_decay"] == 0
    assert "weight_decay" not in decaying


def test_what_is_frozen_is_not_trained_and_the_longest_name_sets_the_rate() -> None:
    module = Whole()
    found = rates(ParameterGroups(freeze=["encoders.audio"], lr={"encoders": 0.1, "encoders.image.embed": 0.5}), module)
    assert not any(name.startswith("model.encoders.audio") for name in found)
    assert found["model.encoders.image.embed.weight"] == 0.5
    assert found["model.encoders.image.blocks.2.weight"] == pytest.approx(0.1)
    assert found["model.decoder.blocks.0.weight"] == found["objectives.contrastive.weight"] == 1.0


def test_each_layer_below_the_top_learns_slower_by_the_decay() -> None:
    found = rates(ParameterGroups(layer_decay=0.5, lr={"decoder": 0.1}), Whole(), lr=2.0)
    for stack, top in (("model.encoders.image", 2.0), ("model.decoder", 0.2)):
        below = [found[f"{stack}.blocks.{i}.weight"] for i in range(3)]
        assert below == pytest.approx([top / 4, top / 2, top])
        assert found[f"{stack}.embed.weight"] == pytest.approx(top / 8)
        assert found[f"{stack}.norm.weight"] == pytest.approx(top)


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (ParameterGroups(freeze=["encoders.imgae"]), "parameters.freeze.*'encoders.imgae'.*'encoders.image'"),
        (ParameterGroups(lr={"xyz": 0.1}), "parameters.lr.*'xyz'; there are: decoder, .*encoders.audio"),
        (ParameterGroups(freeze=["encoders", "decoder", "objectives"]), "nothing is left to train"),
    ],
)
def test_a_name_that_is_none_and_a_model_all_frozen_are_refused(groups: ParameterGroups, told: str) -> None:
    with pytest.raises(UserError, match=told):
        groups.hold(Whole())


@pytest.mark.parametrize("steps", [1, 2, 6, 10, 20, 100])
def test_the_rate_rises_falls_and_ends_at_nothing(steps: int) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    scheduler = one_cycle(optimizer, total_steps=steps)
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


def test_a_schedule_keeps_the_proportion_between_groups() -> None:
    fast, slow = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = [{"params": fast.parameters()}, {"params": slow.parameters(), "share": 0.1}]
    for make in (lambda o: one_cycle(o, total_steps=20), lambda o: constant(o, warmup_steps=4)):
        optimizer = apply_shares(torch.optim.SGD([dict(group) for group in groups], lr=1.0))
        scheduler = make(optimizer)
        for _ in range(10):
            a, b = (group["lr"] for group in optimizer.param_groups)
            assert b == pytest.approx(0.1 * a)
            optimizer.step()
            scheduler.step()


def test_the_constant_schedule_warms_up_evenly() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = constant(optimizer, warmup_steps=3)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
