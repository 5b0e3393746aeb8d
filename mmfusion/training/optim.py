"""Which parameters the optimizer sees, and how."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Gt, Lt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices decay, what has fewer than two dimensions does not."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def one_cycle(
    optimizer: Optimizer,
    *,
    max_lr: Annotated[float, Gt(0)],
    total_steps: Annotated[int, Gt(0)],
    warmup: Annotated[float, Gt(0), Lt(1)] = 0.1,
) -> LRScheduler:
    """Half a cosine up over the first `warmup` of the steps, half a cosine down to zero over the rest.

    torch's OneCycleLR without its cycle of momentum (Smith & Topin 1708.07120). It divides by the length of the warm-up
    less one step: where that is nothing, the warm-up is half a step longer.
    """
    share = warmup if warmup * total_steps != 1 else 1.5 * warmup
    return OneCycleLR(optimizer, max_lr=max_lr, total_steps=total_steps, pct_start=share, cycle_momentum=False)
