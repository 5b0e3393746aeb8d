"""Which parameters the optimizer sees, at which learning rate, and how that changes over the steps."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mmfusion.errors import UserError

_BLOCK = re.compile(r"^(.*\.(?:blocks|layers))\.(\d+)\.")
NO_DECAY = {"weight_decay": 0.0}


class ParameterGroups:
    """What is trained, and at which share of `optim.lr`.

    `freeze` and `lr` name parts by the path that `mmfusion plan` prints: `encoders`, `encoders.image`, `decoder`,
    `encoders.image.vit.blocks.0`, `objectives.contrastive`; of several that hold for a parameter the longest counts.
    `layer_decay` d multiplies the rate of the block that is k below the top of its stack by d^k, and of what lies
    before the first block by d^(number of blocks) (Clark et al. 2003.10555, as BEiT's fine-tuning has it). Matrices
    decay; biases, norms and whatever has fewer than two dimensions do not.
    """

    def __init__(
        self,
        *,
        freeze: Sequence[str] = (),
        lr: Mapping[str, Annotated[float, Ge(0)]] | None = None,
        layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0,
    ) -> None:
        self.freeze, self.lr, self.layer_decay = tuple(freeze), dict(lr or {}), layer_decay

    def hold(self, module: nn.Module) -> None:
        """Freezes what is to be frozen. Raises UserError for a name that no parameter has, and if nothing is left."""
        named = _named(module)
        for key, parts in (("freeze", self.freeze), ("lr", self.lr)):
            for part in parts:
                _check_known(f"parameters.{key}", part, named)
        for name, parameter in named.items():
            if any(_within(name, part) for part in self.freeze):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in named.values()):
            raise UserError(f"parameters.freeze={list(self.freeze)}: nothing is left to train; freeze less")

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        """What is trained as torch.optim's groups, each with its `share` of the rate."""
        named = _named(module)
        depth = _shares(named, self.layer_decay)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in named.items():
            if parameter.requires_grad:
                share = self._of_part(name) * depth.get(name, 1.0)
                groups.setdefault((share, parameter.ndim >= 2), []).append(parameter)
        return [
            {"params": groups[share, decays], "share": share, **({} if decays else NO_DECAY)}
            for share, decays in sorted(groups, reverse=True)
        ]

    def _of_part(self, name: str) -> float:
        holding = [part for part in self.lr if _within(name, part)]
        return self.lr[max(holding, key=len)] if holding else 1.0


def apply_shares(optimizer: Optimizer) -> Optimizer:
    """Each group's learning rate times its `share`, once, before a scheduler remembers it."""
    for group in optimizer.param_groups:
        group["lr"] *= group.pop("share", 1.0)
    return optimizer


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name.removeprefix("model."): parameter for name, parameter in module.named_parameters()}


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _check_known(key: str, part: str, names: Collection[str]) -> None:
    if any(_within(name, part) for name in names):
        return
    parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 1)}
    match = difflib.get_close_matches(part, parts, n=1, cutoff=0.6)
    near = f"; did you mean {match[0]!r}?" if match else f"; there are: {', '.join(sorted(parts & _tops(parts)))}"
    raise UserError(f"{key}: no part of the model is called {part!r}{near}")


def _tops(parts: Collection[str]) -> set[str]:
    return {part for part in parts if part.count(".") <= 1}


def _shares(names: Collection[str], decay: float) -> dict[str, float]:
    """The share of each parameter of a stack of blocks, and of what was registered before its first block."""
    if decay == 1:
        return {}
    stacks: dict[str, int] = {}
    for stack, index, _ in _blocks(names):
        stacks[stack] = max(stacks.get(stack, 0), index + 1)
    found = {name: decay ** (stacks[stack] - 1 - index) for stack, index, name in _blocks(names)}
    for stack, size in stacks.items():
        part = ".".join(stack.split(".")[: 2 if stack.startswith("encoders.") else 1])
        for name in names:
            if name.startswith(f"{stack}."):
                break  # what comes after the blocks is nearest to the loss
            if _within(name, part):
                found.setdefault(name, decay**size)
    return found


def _blocks(names: Collection[str]) -> Iterator[tuple[str, int, str]]:
    for name in names:
        if match := _BLOCK.match(name):
            yield match[1], int(match[2]), name


# ----------------------------------------------------------------------------------------------------------- schedules


def one_cycle(
    optimizer: Optimizer,
    *,
    total_steps: Annotated[int, Gt(0)],
    warmup: Annotated[float, Gt(0), Lt(1)] = 0.1,
) -> LRScheduler:
    """Half a cosine up over the first `warmup` of the steps, half a cosine down to zero over the rest.

    torch's OneCycleLR without its cycle of momentum (Smith & Topin 1708.07120); each group rises to its own rate. It
    divides by the length of the warm-up less one step: where that is nothing, the warm-up is half a step longer.
    """
    share = warmup if warmup * total_steps != 1 else 1.5 * warmup
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total_steps, pct_start=share, cycle_momentum=False)


def constant(optimizer: Optimizer, *, warmup_steps: Annotated[int, Ge(0)] = 0) -> LRScheduler:
    """Evenly up over `warmup_steps`, then as it is, for runs without a planned end."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup_steps + 1)))
