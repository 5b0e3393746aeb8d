"""Budgets: against a real step, of every size and recipe, and as the command prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfusion import config
from mmfusion.cli.main import main
from mmfusion.cli.session import train
from mmfusion.cli.settle import settled
from mmfusion.config import ConfigError
from mmfusion.plan.budget import count, layout_of
from mmfusion.plan.example import micro_batch
from mmfusion.training.module import TrainingModule

RECIPES = ("base_gpu", "large_gpu")


def tree_of(*overrides: str) -> dict[str, Any]:
    return settled(config.compose(["paths.run=unused", "data.workers=0", *overrides]))


def module_of(tree: dict[str, Any]) -> TrainingModule:
    given = config.build_arguments({name: tree[name] for name in ("model", "objective", "optim", "scheduler")}, train)
    return TrainingModule(
        model=given["model"], objectives=given["objective"], weights={}, optimizer=given["optim"],
        scheduler=given["scheduler"], seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("model", ["tiny", pytest.param("small", marks=pytest.mark.slow)])
def test_the_flops_are_those_of_a_real_step(model: str) -> None:
    tree = tree_of(f"model={model}", "data.batch_size=2")
    budget = count(module_of(tree), tree["data"], tree["trainer"], recompute=False)
    batch, _, _ = micro_batch(tree["data"], 2, 8192)
    module = module_of(tree)
    module.configure_model()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer: Any = module.configure_optimizers()
    with FlopCounterMode(display=False) as counter:
        losses, _ = module.losses(batch)
        torch.stack([loss.sum for parts in losses.values() for loss in parts.values()]).sum().backward()
    optimizer["optimizer"].step()
    assert budget.step_flops == counter.get_total_flops()
    assert any(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
    weights = list(module.parameters())
    assert budget.memory.weights == sum(weight.nbytes for weight in weights) == budget.memory.gradients
    state = optimizer["optimizer"].state
    assert budget.memory.state == sum(v.nbytes for kept in state.values() for v in kept.values())


def size_of(model: str) -> dict[str, float]:
    """Millions of parameters of some parts, and of all."""
    tree = tree_of(f"model={model}")
    with torch.device("meta"):
        built = config.build(tree["model"])
    parts = {"image": built.encoders["image"], "decoder": built.decoder, "all": built}
    return {name: sum(weight.numel() for weight in part.parameters()) / 1e6 for name, part in parts.items()}


@pytest.mark.parametrize(
    ("model", "image", "decoder", "whole"),
    [
        ("tiny", (0.2, 0.3), (1, 1.5), (4, 5)),
        ("small", (10, 12), (12, 14), (25, 40)),
        ("base", (85, 90), (340, 370), (550, 650)),
        ("large", (300, 310), (1450, 1550), (2100, 2400)),
    ],
)
def test_every_size_is_built_without_memory(
    model: str, image: tuple[float, float], decoder: tuple[float, float], whole: tuple[float, float]
) -> None:
    found = size_of(model)
    for name, (low, high) in {"image": image, "decoder": decoder, "all": whole}.items():
        assert low <= found[name] <= high, name


def test_sharding_and_accumulation_divide() -> None:
    strategy = {"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}
    layout = layout_of({"devices": 4, "accumulate_grad_batches": 2, "strategy": strategy}, 64)
    assert (layout.devices, layout.accumulate, layout.samples, layout.sharded) == (4, 2, 8, True)
    assert not layout_of({"devices": 4}, 64).sharded
    with pytest.raises(ConfigError, match=r"data.batch_size=6: does not divide by 4 devices x 1 accumulated batches"):
        layout_of({"devices": 4}, 6)
    with pytest.raises(ConfigError, match=r"trainer.devices=auto: plan wants a number"):
        layout_of({"devices": "auto"}, 6)


@pytest.mark.parametrize("experiment", RECIPES)
def test_the_recipes_compose_and_their_samples_fit_the_rows(experiment: str) -> None:
    tree = tree_of(f"experiment={experiment}", "data.root=nowhere", "data.tokenizer=none")
    layout = layout_of(tree["trainer"], tree["data"]["batch_size"])
    assert layout.devices == 8
    batch, _, source = micro_batch(tree["data"], 8, tree["model"]["decoder"]["vocab"])
    assert source.startswith("made up, nowhere has no manifest.json")
    encoder = tree["model"]["encoders"]["image"]
    pixels = (encoder["patch_px"] // encoder["cell_px"]) ** 2 * (3 + encoder["orientations"])
    assert batch.streams["image"].values.shape[2] == pixels


def test_the_command_prints_a_plan_of_a_recipe_before_there_is_data(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model=tiny", "optim.fused=true", "data.pipeline.patchify.audio.bands=64", "data.batch_size=16"]
    flags = ["--gpu-gb", "80", "--tflops", "400", "--devices", "8", "--json"]
    assert main(["plan", "experiment=base_gpu", *small, *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["layout"] == {"devices": 8, "accumulate": 2, "samples": 1, "sharded": True}
    weights = sum(part["weight_bytes"] for part in found["parts"])
    assert found["memory"]["weights"] == weights // 8
    flops = sum(part["forward_flops"] + part["backward_flops"] for part in found["parts"])
    assert found["step_s"] == pytest.approx(2 * flops / 400e12)
    assert found["patches"]["image"] == 16 * (224 // 8) ** 2


def test_the_table_says_what_is_estimated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "--gpu-gb", "0.01", "--tflops", "0.1", "data.batch_size=2", f"paths.runs={tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the first 2 samples of data_prep/sample" in out
    assert "DOES NOT FIT into 0.01 GB" in out
    assert "0.1 TFLOP/s a device (given)" in out
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_training_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "trainer.precision=bf16-true", "data.batch_size=2"]) == 2
    assert "trainer.precision: bf16-true" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--gpu-gb=nan", "--gpu-gb=inf", "--tflops=-1", "--tflops=0", "--tflops=x", "--devices=0"]
)
def test_a_measure_that_is_none_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", flag])
    assert stopped.value.code == 2
    name, _, value = flag.partition("=")
    assert f"argument {name}: {value!r} is no" in capsys.readouterr().err
