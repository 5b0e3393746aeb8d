"""The one LightningModule: a model, objectives, an optimizer. Stages differ in what it is given, never in its code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion.models.multimodal import MultimodalModel
from mmfusion.training.optim import parameter_groups
from mmfusion.types import Batch, DataError, Loss, Objective


class TrainingModule(pl.LightningModule):
    """Trains a model on the weighted sum of its objectives.

    Takes factories, not modules: everything is built in `configure_model`, after seeding there, so that the initial
    weights are the same in every layout of ranks. `weights` scales objectives by name (1 where none is given).
    """

    model: MultimodalModel

    def __init__(
        self,
        *,
        model: Callable[[], MultimodalModel],
        objectives: Mapping[str, Callable[[], nn.Module]],
        weights: Mapping[str, float],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        seed: int,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(weights) - set(objectives)):
            raise ValueError(f"weights.{unknown[0]}: no such objective; there are: {', '.join(sorted(objectives))}")
        self._factories = (model, dict(objectives))
        self._optimizer, self._scheduler = optimizer, scheduler
        self._weights = {name: float(weights.get(name, 1.0)) for name in objectives}
        self._seed = seed
        self._validated: dict[str, list[Loss]] = defaultdict(list)

    def configure_model(self) -> None:
        if hasattr(self, "objectives"):  # Lightning calls this once for fit and again for validate
            return
        pl.seed_everything(self._seed, workers=True, verbose=False)
        model, objectives = self._factories
        self.model = model()
        self.objectives = nn.ModuleDict({name: make() for name, make in objectives.items()})
        read = {modality for _, objective in self._named_objectives() for modality in objective.modalities}
        for modality in set(self.model.modalities) - read:
            self.model.freeze(modality)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer(parameter_groups(self))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def on_fit_start(self) -> None:
        data: Any = getattr(self.trainer, "datamodule")  # noqa: B009  (Lightning's stub of Trainer leaves it out)
        pieces, vocab = data.pipeline.tokenizer.size, self.model.decoder.vocab
        if pieces > vocab:
            raise DataError(f"model.decoder.vocab={vocab}: data.tokenizer has {pieces} pieces; set it to {pieces}")

        if lacking := sorted(set(self.model.modalities) - set(data.pipeline.modalities)):
            raise DataError(
                f"model.encoders.{lacking[0]}: the data gives none (data.pipeline.patchify, text_pieces for text); add "
                f"it there, or leave the encoder out"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A point saved after a step was begun, by an error or a signal, stands for that step's beginning."""
        accumulate = self.trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]  # Lightning counts micro-batches
        begun = progress["total"]["ready"] - checkpoint["global_step"] * accumulate
        if 0 < begun <= accumulate:
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]  # the loggers' step
            for counter in (progress["current"], progress["total"]):
                counter.update(dict.fromkeys(("ready", "started", "processed", "completed"), counter["ready"] - begun))

    def _named_objectives(self) -> list[tuple[str, Objective]]:
        return list(self.objectives.items())  # pyright: ignore[reportReturnType]  (ModuleDict forgets what it holds)

    def count(self, batch: Batch) -> dict[str, int]:
        """What each objective will average over in this micro-batch; the loader sums it over the step."""
        return {name: objective.count(objective.views(batch)) for name, objective in self._named_objectives()}

    def losses(self, batch: Batch) -> dict[str, dict[str, Loss]]:
        """Every objective's losses. Objectives that do not change the batch share one forward."""
        outputs = None
        result = {}
        for name, objective in self._named_objectives():
            view = objective.views(batch)
            if view is batch:
                outputs = self.model(batch) if outputs is None else outputs
                result[name] = objective(outputs, batch)
            else:
                result[name] = objective(self.model(view), view)
        return result

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        total = torch.zeros((), device=self.device)
        for name, parts in losses.items():
            for part in parts.values():
                total = total + self._weights[name] * part.sum / max(1, batch.counts[name])
        if not torch.isfinite(total):
            keys = ", ".join(batch.keys)
            raise DataError(
                f"the loss of step {self.global_step} is {total.item()}; nothing was updated. Samples: {keys}"
            )
        for parts in losses.values():
            for label, part in parts.items():
                self.log(f"train/{label}", part.sum.detach() / max(1, part.count), batch_size=len(batch.keys))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.keys))
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        # DDP averages over ranks and Lightning divides by the accumulation, but the count is already a global one.
        return total * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for name, parts in self.losses(batch).items():
            for label, part in parts.items():
                self._validated[f"{name}:{label}"].append(part)

    def on_validation_epoch_end(self) -> None:
        total = 0.0
        counted = defaultdict(int)
        sums: dict[str, float] = defaultdict(float)
        for key, parts in self._validated.items():
            name, label = key.split(":", 1)
            count = sum(part.count for part in parts)
            value = float(torch.stack([part.sum for part in parts]).sum())
            self.log(f"val/{label}", value / max(1, count))
            counted[name] += count
            sums[name] += value
        for name, value in sums.items():
            total += self._weights[name] * value / max(1, counted[name])
        self.log("val/loss", total, prog_bar=True)
        self._validated.clear()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)
