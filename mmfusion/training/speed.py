"""How fast training goes, how near that is to what the machine can do, and where a step's time is spent."""

from __future__ import annotations

import functools
import statistics
import time
from contextlib import nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import Throughput
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmfusion.data.datamodule import datamodule_of
from mmfusion.types import Batch

NAMES = {"samples_per_s": "samples_per_sec", "flops_per_s": "flops_per_sec", "peak_share": "mfu"}  # ours: Lightning's
PHASES = ("data", "forward", "backward", "optimizer", "rest")
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}  # that products are made in, by precision
ENOUGH_S = 0.005


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a square matrix product reaches on this device with the threads that torch has.

    The median of seven, in the least size of a power of two that takes ENOUGH_S, up to 8192: where it is fast a small
    one measures its launch, where it is slow (bf16 on many a CPU) a large one takes long. Measured once for
    each number of threads.
    """
    return _measured(device, dtype, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    seconds, size = 0.0, 128
    while seconds < ENOUGH_S and size < 8192:
        size *= 2
        seconds = _product_s(device, dtype, size)
    return 2 * size**3 / seconds


def _product_s(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, product = torch.ones(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(8):  # the first is to warm up
        began = time.perf_counter()
        torch.mm(a, a, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


class Speed(Callback):
    """`speed/…` at every logged step: the mean seconds of a step's phases since the last logged one, `data` (waiting
    for a batch), `forward`, `backward`, `optimizer`, `rest` (logging, checkpoints, other callbacks). From the second
    logged step on also samples (holes among them) a second of all ranks, FLOPs a second of this one, and its
    `peak_share` of `matrix_flops`. Validation is left out.

    FLOPs are counted by torch on the first batch that is logged, forward and backward, and taken to be those of all.
    Lightning's Throughput does the sums; its ThroughputMonitor logs validation at steps of its own count. On a GPU,
    which runs behind, a phase is the time to launch it.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._flops = 0
        self._throughput: Throughput | None = None  # made when its first step is logged
        self._steps = self._samples = self._logged = 0
        self._training = self._waited = 0.0
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._mark()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        between = self._mark()
        waited = _waited(trainer) - self._waited
        self._waited += waited
        self._spent["data"] += waited
        self._spent["rest"] += max(0.0, between - waited)
        if self._throughput is None and pl_module.logs_now:  # not in the first step, which people wait for
            self._flops = trainer.accumulate_grad_batches * flops_of(trainer, pl_module, batch)
            self._throughput = _throughput(trainer, window=max(2, pl_module.log_every))
            self._mark()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self._spent["forward"] += self._mark()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._spent["backward"] += self._mark()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._spent["optimizer"] += self._mark()
        self._samples += len(batch.keys) + sum(batch.skipped.values())
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        spent = sum(self._spent.values())
        if self._throughput is not None:
            self._throughput.update(
                time=self._training + spent, batches=self._steps, samples=self._samples, flops=self._flops
            )
        if pl_module.logs(trainer.global_step):
            self._log(pl_module, trainer.world_size)
            self._training += spent

    def _log(self, pl_module: Any, ranks: int) -> None:
        steps = self._steps - self._logged
        self._logged = self._steps
        rates = self._throughput.compute() if self._throughput is not None else {}
        for ours, theirs in NAMES.items():
            if (rate := rates.get(f"device/{theirs}")) is not None:
                pl_module.told[f"speed/{ours}"] = float(rate) * (ranks if ours == "samples_per_s" else 1)
        for phase, seconds in self._spent.items():
            pl_module.told[f"speed/{phase}_s"] = seconds / steps
            self._spent[phase] = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._spent["rest"] += self._mark()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._mark()

    def _mark(self) -> float:
        """Seconds since the last mark."""
        now = time.perf_counter()
        passed, self._since = now - getattr(self, "_since", now), now
        return passed


class _NoModules(nullcontext[None]):
    """Instead of the counter's own view of modules, whose hooks would keep alive what a block recomputes, and fail
    where a module is given a weight, as those are that round one."""

    parents = frozenset({"Global"})


def flop_counter() -> FlopCounterMode:
    """torch's, of everything together."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = cast("Any", _NoModules())
    return counter


def flops_of(trainer: pl.Trainer, pl_module: Any, batch: Batch) -> int:
    """FLOPs of a batch, forward and backward, in a pass of its own: under the counter some results differ in their
    last bits, which a run that goes on would notice. No gradient is kept, and running statistics stay as they were;
    what it draws does not matter, since the numbers of each micro-batch are seeded after it."""
    statistics = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
    trained = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
    counter = flop_counter()
    with counter, torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
        losses, _ = pl_module.losses(batch)
        total = torch.stack([part.sum for parts in losses.values() for part in parts.values()]).sum()
        torch.autograd.grad(total, trained, allow_unused=True)
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)
    return counter.get_total_flops()


def _throughput(trainer: pl.Trainer, window: int) -> Throughput:
    device = trainer.strategy.root_device
    peak = matrix_flops(device, DTYPES.get(str(trainer.precision).split("-")[0], torch.float32))
    return Throughput(available_flops=peak, world_size=trainer.world_size, window_size=window)


def _waited(trainer: pl.Trainer) -> float:
    return datamodule_of(trainer).waited_s
