"""What a configuration costs: weights, gradients, optimizer state, activations and FLOPs, by part and by device.

Modules are built on the `meta` device and one micro-batch goes through them, forward and backward, as shapes without
numbers; only the batch's own masks and indices are real. Attention counts as a fused kernel, which keeps no scores.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfusion.config import ConfigError
from mmfusion.plan.example import micro_batch
from mmfusion.plan.meter import REST, Meter
from mmfusion.training.module import TrainingModule
from mmfusion.types import Batch

# trainer.precision: the type of autocast. Weights, gradients and optimizer state stay float32 in all of them.
AUTOCAST = {
    **dict.fromkeys(("32-true", "32", 32)),
    **dict.fromkeys(("bf16-mixed", "bf16"), torch.bfloat16),
    **dict.fromkeys(("16-mixed", "16", 16), torch.float16),
}
SHARDED = ("ModelParallelStrategy", "FSDPStrategy")  # the strategies that divide weights over devices


@dataclass(frozen=True)
class Layout:
    """How a step is dealt: each of `devices` takes `accumulate` micro-batches of `samples`; are weights `sharded`?"""

    devices: int
    accumulate: int
    samples: int
    sharded: bool


@dataclass(frozen=True)
class PartCost:
    """Of one part: all of its weights; FLOPs and activations (bytes kept for backward) of a micro-batch."""

    name: str
    parameters: int
    trainable: int
    forward_flops: int
    backward_flops: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `gathered`: under sharding, weights that no block holds, and three of the largest block
    (the one at work, the next, and a gradient on its way). `activations`: the peak in a micro-batch's forward and
    backward beyond all others.
    """

    weights: int
    gradients: int
    state: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Budget:
    """What `count` found. Patches and pieces are those of a whole step, padding left out."""

    parts: list[PartCost]
    layout: Layout
    memory: Memory
    patches: dict[str, int]
    pieces: int
    counted_on: str

    @property
    def step_flops(self) -> int:
        """Of one device in one optimizer step."""
        return self.layout.accumulate * sum(part.forward_flops + part.backward_flops for part in self.parts)


def layout_of(trainer: Mapping[str, Any], batch_size: int) -> Layout:
    """Raises ConfigError where devices are not counted or the batch does not divide."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    devices = len(devices) if isinstance(devices, list) else devices
    if not isinstance(devices, int) or devices < 1:
        raise ConfigError([f"trainer.devices={devices}: plan wants a number; give --devices 8"])
    ranks, accumulate = devices * nodes, trainer.get("accumulate_grad_batches", 1)
    if batch_size % (ranks * accumulate):
        dealt = f"{ranks} devices x {accumulate} accumulated batches"
        raise ConfigError([f"data.batch_size={batch_size}: does not divide by {dealt}; change one of them"])
    strategy = trainer.get("strategy", "auto")
    name = str(strategy.get("_target_") if isinstance(strategy, Mapping) else strategy)
    sharded = ranks > 1 and (name.endswith(SHARDED) or name.startswith("fsdp"))
    return Layout(ranks, accumulate, batch_size // (ranks * accumulate), sharded)


def count(module: TrainingModule, data: Mapping[str, Any], trainer: Mapping[str, Any], *, recompute: bool) -> Budget:
    """The budget of a training module that is not built yet, under the checked nodes `data` and `trainer`.

    `recompute`: with gradient checkpointing. Raises ConfigError.
    """
    layout = layout_of(trainer, data["batch_size"])
    precision = trainer.get("precision", "32-true")
    if precision not in AUTOCAST:
        raise ConfigError([f"trainer.precision={precision}: plan counts {', '.join(map(str, AUTOCAST))}"])
    with torch.device("meta"):
        module.configure_model()
    with FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device="cpu")  # still without numbers, but of a device that autocast knows
        module.attach_references()
    if recompute:
        module.model.checkpoint_activations()
    batch, tokenizer, counted_on = micro_batch(data, layout.samples, module.model.decoder.vocab)
    module.read_with(tokenizer)
    meter, activations = measure(module, batch, AUTOCAST[precision])
    optimizer: Any = module.configure_optimizers()
    optimizer = optimizer["optimizer"]
    optimizer.step()
    state = {weight: sum(_bytes(value) for value in kept.values()) for weight, kept in optimizer.state.items()}
    parts = [_cost(name, part, meter, state) for name, part in meter.parts.items()]
    parts.append(_cost(REST, nn.Module(), meter, state))
    steps = layout.devices * layout.accumulate
    return Budget(
        parts=parts,
        layout=layout,
        memory=_memory(parts, module, layout, activations),
        patches={name: steps * int(stream.valid.sum()) for name, stream in batch.streams.items()},
        pieces=steps * int((batch.rows.document >= 0).sum()),
        counted_on=counted_on,
    )


def parts_of(module: TrainingModule) -> dict[str, nn.Module]:
    """What the budget tells apart."""
    model = module.model
    named = {"encoders": model.encoders, "heads": model.heads, "objective": module.objectives}
    parts = {f"{group}.{name}": part for group, modules in named.items() for name, part in modules.items()}
    return {**parts, "fusion": model.fusion, "decoder": model.decoder}


def measure(module: TrainingModule, batch: Batch, autocast: torch.dtype | None = None) -> tuple[Meter, int]:
    """A micro-batch forward and backward, and the most bytes that were alive in it beyond weights and gradients.

    Gradients are there from the beginning, as in every micro-batch but a step's first.
    """
    meter = Meter(parts_of(module))
    with meter.counting(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mismatch dtype")  # of norms under autocast: it is so in training too
        for weight in module.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        gradients = sum(_bytes(weight.grad) for weight in module.parameters())
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            losses, _ = module.losses(batch)
            total = torch.stack([one.sum for parts in losses.values() for one in parts.values() if one.trained]).sum()
        meter.begin_backward()
        total.backward()
    return meter, meter.peak - gradients


def _cost(name: str, part: nn.Module, meter: Meter, state: Mapping[Tensor, int]) -> PartCost:
    weights = list(part.parameters())
    trainable = [weight for weight in weights if weight.requires_grad]
    return PartCost(
        name=name,
        parameters=sum(weight.numel() for weight in weights),
        trainable=sum(weight.numel() for weight in trainable),
        forward_flops=meter.forward[name],
        backward_flops=meter.backward[name],
        weight_bytes=sum(_bytes(weight) for weight in weights),
        gradient_bytes=sum(_bytes(weight) for weight in trainable),
        state_bytes=sum(state.get(weight, 0) for weight in trainable),
        activation_bytes=meter.saved[name],
    )


def _memory(parts: list[PartCost], module: TrainingModule, layout: Layout, activations: int) -> Memory:
    weights = sum(part.weight_bytes for part in parts)
    gradients, state = sum(part.gradient_bytes for part in parts), sum(part.state_bytes for part in parts)
    blocks = [sum(_bytes(weight) for weight in block.parameters()) for block in module.model.blocks()]
    shares = layout.devices if layout.sharded else 1
    gathered = weights - sum(blocks) + 3 * max(blocks, default=0) if layout.sharded else 0
    return Memory(weights // shares, gradients // shares, state // shares, gathered, activations)


def _bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
