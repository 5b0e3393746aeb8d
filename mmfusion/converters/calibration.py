"""Scales of rounded weights that heed what the weights are multiplied with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmfusion.converters import packing
from mmfusion.errors import UserError
from mmfusion.types import Batch

SHARES = tuple(1 - 0.025 * step for step in range(25))  # of the scale that reaches to the largest weight


def calibrate(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The mean square [in] of what each linear map is given, by its name, over some batches, padding among it.

    Raises UserError, naming the samples, where one gives what is no number.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def listen(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], name: str) -> None:
        x = (given[0] if given else named["input"]).detach().float()
        x = x.reshape(-1, x.shape[-1])
        sums[name] = sums.get(name, 0) + x.square().sum(dim=0)
        counts[name] = counts.get(name, 0) + len(x)

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(partial(listen, name=name), with_kwargs=True) for name, layer in linear.items()
    ]
    try:
        for batch in batches:
            with torch.no_grad():
                model(batch)
            if odd := [name for name, total in sums.items() if not torch.isfinite(total).all()]:
                keys = ", ".join(batch.keys)
                raise UserError(f"calibration: {odd[0]} is given what is no number; see the samples {keys}")
    finally:
        for hook in hooks:
            hook.remove()
    never = {name: torch.ones(layer.in_features) for name, layer in linear.items()}  # was given nothing
    return never | {name: total / max(1, counts[name]) for name, total in sums.items()}


@torch.no_grad()
def fit_scale(held: Any, weight: Tensor, moment: Tensor | None) -> None:
    """Change the scales of a torchao weight, in place, to those shares of them under which it differs least from the
    full `weight` [out, in], each column weighted by the `moment` [in] of its input, 1 without one: the search for a
    clipping of AWQ (Lin et al. 2306.00978), with inputs taken to be uncorrelated.
    """
    groups = held.scale.shape[-1]
    least, most = (-8, 7) if packing.of_four_bits(held) else (-128, 127)
    full = weight.unflatten(1, (groups, -1))
    counts = torch.ones_like(full[0]) if moment is None else moment.unflatten(0, (groups, -1)).to(full)
    reaching, lowest = held.scale.clone(), torch.full_like(held.scale, torch.inf)
    for share in SHARES:
        scale = reaching * share
        rounded = (full / scale[..., None]).round().clamp(least, most)
        error = ((rounded * scale[..., None] - full).square() * counts).sum(dim=-1)
        better = error < lowest
        lowest = torch.where(better, error, lowest)
        held.scale.copy_(torch.where(better, scale, held.scale))
        held.qdata.copy_(torch.where(better[..., None], rounded.to(torch.int8), held.qdata.view(full.shape)).flatten(1))
