"""What a run can go on from: points saved when a step is over, with its log and its validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from mmfusion import runs


class ResumePoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint every so many steps, saved as the next step begins.

    Lightning saves at a step's end, before what belongs to it is logged and validated; a run that went on from there
    never made up for it. What has begun of the next step is taken back on loading (`TrainingModule`). The last step,
    planned or stopped early, is always saved, and marked as the end.
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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        folder = Path(self.dirpath or trainer.default_root_dir)
        trainer.save_checkpoint(folder / f"step={trainer.global_step}.ckpt")
        if trainer.is_global_zero:
            runs.write(folder / runs.ENDED, f"{trainer.global_step}\n")


def find_again(callbacks: Iterable[Callback], states: Mapping[str, dict[str, Any]]) -> None:
    """The saved states of checkpoint callbacks, changed in place for a run that was moved: its files went with it.

    Lightning forgets the best of a run that lies elsewhere now. A state whose best file did not come along stays.
    """
    for callback in callbacks:
        state = states.get(callback.state_key)
        if state is None or not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
            continue
        folder = Path(callback.dirpath)
        if Path(_in(folder, state["best_model_path"])).exists():
            named = ("best_model_path", "kth_best_model_path", "last_model_path")
            kept = {_in(folder, path): score for path, score in state["best_k_models"].items()}
            state.update({name: _in(folder, state[name]) for name in named}, best_k_models=kept, dirpath=str(folder))


def _in(folder: Path, path: str) -> str:
    return path and str(folder / Path(path).name)
