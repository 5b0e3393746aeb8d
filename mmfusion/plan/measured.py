"""What a step takes on this machine, with numbers, to stand beside what `budget` counts."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from mmfusion.plan.budget import AUTOCAST, layout_of, measure
from mmfusion.plan.example import micro_batch
from mmfusion.training.module import TrainingModule


@dataclass(frozen=True)
class Measured:
    """Bytes of a micro-batch of one device: as in `budget.Memory`; `peak` is by how much the process grew at most, or
    the most that a GPU's allocator held; nothing that was larger may have been in it before."""

    weights: int
    gradients: int
    state: int
    activations: int
    peak: int


def take(module: TrainingModule, data: Mapping[str, Any], trainer: Mapping[str, Any], *, recompute: bool) -> Measured:
    """Two steps of a training module that is not built yet, under the checked nodes `data` and `trainer`.

    The second one is measured: an optimizer makes its state in the first. Raises ConfigError.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples, before = layout_of(trainer, data["batch_size"]).samples, psutil.Process().memory_info().rss
    module.configure_model()
    module.to(device)
    batch, tokenizer, _ = micro_batch(data, samples, module.model.decoder.vocab)
    if recompute:
        module.model.checkpoint_activations()
    module.read_with(tokenizer)
    optimizer: Any = module.configure_optimizers()
    optimizer = optimizer["optimizer"]
    activations = 0
    for _ in range(2):
        _, activations = measure(module, batch.to(device), AUTOCAST[trainer.get("precision", "32-true")])
        optimizer.step()
    weights = list(module.parameters())
    state = [x for kept in optimizer.state.values() for x in kept.values() if isinstance(x, Tensor)]
    return Measured(
        weights=sum(weight.nbytes for weight in weights),
        gradients=sum(weight.grad.nbytes for weight in weights if weight.grad is not None),
        state=sum({x.untyped_storage().data_ptr(): x.nbytes for x in state}.values()),  # tables are shared
        activations=activations,
        peak=torch.cuda.max_memory_allocated() if device.type == "cuda" else _most_resident() - before,
    )


def _most_resident() -> int:
    """The most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
