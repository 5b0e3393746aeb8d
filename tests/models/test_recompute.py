"""Blocks that recompute their activations in backward: the same values and gradients."""

from __future__ import annotations

import pytest
import torch
from tiny_multimodal import tiny_batch, tiny_model

from mmfusion.objectives.captioning import Captioning
from mmfusion.objectives.contrastive import Contrastive


@pytest.mark.parametrize("executor", ["sdpa", "reference"])
def test_recomputed_activations_give_the_same_gradients(executor: str) -> None:
    gradients = []
    for recompute in (False, True):
        model, batch = tiny_model(executor), tiny_batch()
        if recompute:
            model.checkpoint_activations()
        outputs = model(batch)
        objectives = Captioning(), Contrastive(pairs=[["image", "text"]])
        losses = [loss for objective in objectives for loss in objective(outputs, batch).values()]
        torch.stack([loss.sum for loss in losses]).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert list(gradients[0]) == list(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7)


def test_each_block_runs_twice_and_only_for_backward() -> None:
    model, batch = tiny_model(), tiny_batch()
    runs: list[torch.nn.Module] = []
    for block in model.blocks():
        norm = next(block.children())
        norm.register_forward_hook(lambda module, *_: runs.append(module))
    model.checkpoint_activations()
    with torch.no_grad():
        model(batch)
    assert len(runs) == len(model.blocks())
    runs.clear()
    model(batch).hidden.sum().backward()
    seen = [runs.count(next(block.children())) for block in model.blocks()]
    assert seen == [2, 2, 2, 1, 2, 2]  # the text tower's, which nothing here reads, has no backward


def test_blocks_are_the_repeated_layers_in_order() -> None:
    model = tiny_model()
    names = {module: name for name, module in model.named_modules()}
    assert [names[block] for block in model.blocks()] == [
        "encoders.image.vit.blocks.0",
        *(f"encoders.{name}.transformer.blocks.0" for name in ("audio", "sensor", "text")),
        *(f"decoder.transformer.blocks.{i}" for i in range(2)),
    ]
