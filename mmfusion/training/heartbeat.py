"""The pulse of a run while it trains: steps, speed and losses in its status.json."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback

from mmfusion import checkpoint, runs
from mmfusion.data.datamodule import datamodule_of


class Heartbeat(Callback):
    """Writes the run's `status.json` every `every_s` seconds between steps, after each validation and at the end."""

    def __init__(self, *, every_s: Annotated[float, Ge(0)] = 10.0) -> None:
        self.every_s = every_s
        self._begin = self._last = time.monotonic()
        self._first_step: int | None = None  # until steps are taken

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = datamodule_of(trainer)
        self._begin = self._last = time.monotonic()
        self._first_step = trainer.global_step
        self._beat(trainer, data=checkpoint.data_of(data.root)["fingerprint"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last >= self.every_s:
            self._beat(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._beat(trainer)

    def _beat(self, trainer: pl.Trainer, **facts: Any) -> None:
        if not trainer.is_global_zero or self._first_step is None:
            return
        self._last = time.monotonic()
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        kept = {
            name: value
            for name, value in logged.items()
            if math.isfinite(value) and (name == "train/loss" or name.startswith("val/"))
        }
        if done := trainer.global_step - self._first_step:
            facts["step_s"] = (self._last - self._begin) / done
        runs.mark(Path(trainer.default_root_dir), step=trainer.global_step, metrics=kept, **facts)
