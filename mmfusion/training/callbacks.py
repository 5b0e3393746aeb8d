"""What Lightning lacks: plain progress lines where the output is no terminal, and a stop between two steps."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType
from typing import Annotated, Any

import lightning.pytorch as pl
from annotated_types import Ge, Gt
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar


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


class StopBetweenSteps(Callback):
    """The first Ctrl-C waits for the step's end, so that its resume point is whole; the second stops at once."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._asked and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        signal.signal(signal.SIGINT, self._before)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "_before"):
            self._restore()
