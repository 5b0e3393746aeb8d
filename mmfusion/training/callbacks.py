"""What Lightning lacks: plain progress lines where the output is no terminal, a stop between two steps, an average that
leaves alone what is not trained."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
from annotated_types import Ge, Gt, Le
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ProgressBar, RichProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from mmfusion import runs
from mmfusion.ranks import leave, of_all
from mmfusion.training import plot


class EMAWeightAveraging(callbacks.EMAWeightAveraging):
    """Lightning's, in which d·w + (1 - d)·w is not always w: a frozen weight would drift by its last bits, and one that
    is packed into bytes would become another. Here what does not change stays as it is.
    """

    def __init__(
        self,
        *,
        decay: Annotated[float, Ge(0), Le(1)] = 0.999,
        update_every_n_steps: Annotated[int, Gt(0)] = 1,
        update_starting_at_step: Annotated[int, Ge(0)] | None = None,
    ) -> None:
        how = {"update_every_n_steps": update_every_n_steps, "update_starting_at_step": update_starting_at_step}
        super().__init__(decay=decay, **how)

        def average(old: Tensor, new: Tensor, _: Tensor) -> Tensor:
            return old.lerp(new, 1 - decay) if old.is_floating_point() else new

        self._kwargs["avg_fn"] = average


class PlainProgress(ProgressBar):
    """A line every `every_s` seconds: step, loss, samples/s, time left."""

    def __init__(self, every_s: Annotated[float, Ge(0)] = 10.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step
        self._samples = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch.keys) * trainer.world_size
        now = time.monotonic()
        if not self._enabled or (now - self._last < self.every_s and trainer.global_step < trainer.max_steps):
            return
        self._last = now
        elapsed = now - self._start
        done = trainer.global_step - self._first_step
        left = elapsed / max(1, done) * (trainer.max_steps - trainer.global_step)
        values = "  ".join(
            f"{name} {value:.3f}"
            for name, value in self.get_metrics(trainer, pl_module).items()
            if isinstance(value, float)
        )
        print(
            f"step {trainer.global_step}/{trainer.max_steps}  {values}  "
            f"{self._samples / elapsed:.0f} samples/s  {left:.0f} s left",
            flush=True,
        )


class RichProgress(RichProgressBar):
    """Lightning's bar with samples/s beside the loss."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started, self._samples = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch.keys) * trainer.world_size
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        if trainer.training and self._samples:
            items["samples/s"] = f"{self._samples / (time.monotonic() - self._started):.0f}"
        return items


def progress_bar(every_s: Annotated[float, Gt(0)] = 10.0) -> ProgressBar:
    """A bar on a terminal, lines elsewhere (a file, a batch system's log)."""
    return RichProgress() if sys.stdout.isatty() else PlainProgress(every_s)


class FindLearningRate(LearningRateFinder):
    """Lightning's range test (Smith 1506.01186) instead of training: what it suggests for `optim.lr`, its points as
    lr_find.csv and their plot as lr_find.png in the run folder. Nothing is trained and nothing saved.
    """

    def __init__(
        self,
        min_lr: Annotated[float, Gt(0)] = 1e-5,
        max_lr: Annotated[float, Gt(0)] = 1.0,
        steps: Annotated[int, Gt(20)] = 60,
    ) -> None:
        super().__init__(min_lr=min_lr, max_lr=max_lr, num_training_steps=steps, update_attr=False)
        self._early_exit = True  # Lightning's own way to end here

    def lr_find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super().lr_find(trainer, pl_module)
        finally:
            if (found := self.optimal_lr) and trainer.is_global_zero:
                folder, suggestion = Path(trainer.default_root_dir), found.suggestion()
                points = zip(found.results["lr"], found.results["loss"], strict=False)  # stopped early: a rate more
                lines = [f"{lr:.6g},{loss:.6g}" for lr, loss in points]
                runs.write(folder / "lr_find.csv", "\n".join(["lr,loss", *lines, ""]))
                rates, losses = (np.array(found.results[name][: len(lines)]) for name in ("lr", "loss"))
                drawn = plot.lines(
                    np.log10(rates), losses[:, None], names=["loss over the learning rate"], unit="",
                    ends=(f"{rates[0]:.0e}", f"{rates[-1]:.0e}"), mark=suggestion and math.log10(suggestion),
                )  # fmt: skip
                Image.fromarray(drawn).save(folder / "lr_find.png")
                print(f"suggested  optim.lr={suggestion:.2g}  ({folder / 'lr_find.png'})" if suggestion else
                      "no rate stands out; see lr_find.csv", flush=True)  # fmt: skip


class StopBetweenSteps(Callback):
    """The first Ctrl-C or SIGTERM waits for the step's end, with its validation, so that its resume point is whole.

    The second stops at once, unless weights are just being updated. Ends in KeyboardInterrupt or SIGTERMException. In
    the last step training ends as it would, and whoever started it calls `stop_if_asked`.

    Several ranks stop at the same step, whichever of them heard. A rank that ends on its own, by an error or at once,
    leaves the others first, so that none of them waits for it.
    """

    _before: dict[signal.Signals, Any] | None = None
    _asked: signal.Signals | None = None
    _at_once = _updating = _agreed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._asked = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._at_once = True
            if not self._updating:
                self.stop_if_asked()
            return
        self._asked = signal.Signals(number)
        again = "Ctrl-C" if self._asked is signal.SIGINT else "SIGTERM"
        print(f"\nstopping after this step ({again} again: at once)", file=sys.stderr, flush=True)

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt or SIGTERMException where a signal came."""
        if self._asked:
            raise SIGTERMException if self._asked is signal.SIGTERM else KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:  # the step before is logged and validated
            self._asked = max(of_all(self._asked), key=lambda asked: asked or 0)
            self._agreed = self._asked is not None
            self.stop_if_asked()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._updating = True  # a point saved amid this would be of no step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._updating = False
        if self._at_once:
            self.stop_if_asked()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()  # and does not raise: the callbacks behind it have an end to make

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()
        if not self._agreed:
            leave()

    def _restore(self) -> None:
        for number, handler in (self._before or {}).items():
            signal.signal(number, handler)
        self._before = None
