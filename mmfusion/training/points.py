"""What a run can go on from: points saved when a step is over, with its log and its validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class ResumePoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint every so many steps, saved as the next step begins.

    Lightning saves at a step's end, before what belongs to it is logged and validated; a run that went on from there
    never made up for it. What has begun of the next step is taken back on loading (`TrainingModule`).
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        return

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, None, batch, batch_idx)
