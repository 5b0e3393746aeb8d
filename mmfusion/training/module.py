"""The one LightningModule: a model, objectives, an optimizer. Stages differ in what it is given, never in its code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion.converters.lora import Lora
from mmfusion.converters.quantize import Quantize
from mmfusion.data.datamodule import datamodule_of
from mmfusion.data.order import stable_hash
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.errors import UserError
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.objectives.distillation import Distillation
from mmfusion.ranks import of_all
from mmfusion.training import points
from mmfusion.training.optim import ParameterGroups, apply_shares
from mmfusion.training.reference import Comparing, Frozen, Learned
from mmfusion.training.speaker import Speaker, Speaking
from mmfusion.types import Batch, DataError, Loss, Objective, Outputs


@dataclass
class Mean:
    """A sum and a count that grow."""

    sum: float = 0.0
    count: int = 0

    def add(self, sum: float, count: int) -> None:
        self.sum, self.count = self.sum + sum, self.count + count

    @property
    def value(self) -> float:
        return self.sum / max(1, self.count)


K = TypeVar("K")


def means_of_all(own: Mapping[K, Mean]) -> dict[K, Mean]:
    """The means of what all ranks have summed up."""
    together: dict[K, Mean] = defaultdict(Mean)
    for of_one in of_all(dict(own)):
        for key, mean in of_one.items():
            together[key].add(mean.sum, mean.count)
    return together


def by_source(loss: Loss, batch: Batch) -> dict[str, tuple[float, int]]:
    """The sum and count of a loss that each source of the batch has a share in; none where it is not told apart."""
    if loss.each is None or loss.owner is None:
        return {}
    names = sorted(set(batch.sources))
    source = torch.tensor([names.index(n) for n in batch.sources], dtype=torch.int64, device=loss.owner.device)
    counted = loss.owner >= 0
    of = source[loss.owner[counted]]
    sums = torch.zeros(len(names), dtype=loss.each.dtype, device=of.device).index_add_(0, of, loss.each[counted])
    counts = torch.bincount(of, minlength=len(names))
    return {n: (s, c) for n, s, c in zip(names, sums.tolist(), counts.tolist(), strict=True) if c}


@runtime_checkable
class Reading(Protocol):
    """An objective that has to know what pieces mean: it has a `tokenizer`, which the module gives it."""

    tokenizer: Tokenizer | None


class TrainingModule(pl.LightningModule):
    """Trains a model on the weighted sum of its objectives.

    Takes factories, not modules: everything is built in `configure_model`, after seeding there, so that the initial
    weights are the same in every layout of ranks. `weights` scales objectives by name (1 where none is given); `start`
    fills the new model with weights to begin from, which `converters` then change in order (`quantizer` is the one that
    will make integers of them); objectives that compare get the model as it is then. A run goes on only with the
    weights it `began_with` (their sha256) and the models that judged. `compiled` compiles the model's parts
    (torch.compile), `recompute` keeps no activations inside blocks (gradient checkpointing). Callbacks put what they
    measure in a step that `logs_now` into `told`.
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
        parameters: ParameterGroups | None = None,
        start: Callable[[nn.Module], None] | None = None,
        compiled: bool = False,
        recompute: bool = False,
        converters: Mapping[str, Callable[[nn.Module], nn.Module]] | None = None,
        began_with: str | None = None,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(weights) - set(objectives)):
            raise ValueError(f"weights.{unknown[0]}: no such objective; there are: {', '.join(sorted(objectives))}")
        quantizers = [convert for convert in (converters or {}).values() if isinstance(convert, Quantize)]
        if len(quantizers) > 1:
            raise UserError("converter: a model is quantized once; leave one of int8, int8_int4 and int4")
        self.quantizer = quantizers[0] if quantizers else None
        if self.quantizer and any(
            isinstance(convert, Lora) and convert.dora for convert in (converters or {}).values()
        ):
            raise UserError("converter.lora.dora: measures the weights that are rounded; leave it out, or the rounding")
        if self.quantizer and (share := self.quantizer.distillation):
            objectives, weights = {**objectives, "distillation": Distillation}, {**weights, "distillation": share}
        self._factories = (model, dict(objectives))
        self._optimizer, self._scheduler = optimizer, scheduler
        self._weights = {name: float(weights.get(name, 1.0)) for name in objectives}
        self._seed, self._groups, self._start = seed, parameters or ParameterGroups(), start
        self._compiled, self._recompute = compiled, recompute
        self._converters, self._began_with = dict(converters or {}), began_with
        self.told: dict[str, float] = {}
        self._trained: dict[str, Mean] = defaultdict(Mean)
        self._validated: dict[tuple[str, str], Mean] = defaultdict(Mean)

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
        embedded = {name for _, o in self._named_objectives() for name in getattr(o, "embeddings", o.modalities)}
        for modality in set(self.model.heads) - embedded:
            self.model.heads[modality].requires_grad_(False)
        self._groups.hold(self)
        if self._start:
            self._start(self.model)
        if self.quantizer and self.quantizer.distillation:
            self.objectives["distillation"].teacher = Frozen(self.model)  # pyright: ignore[reportArgumentType]
        for convert in self._converters.values():
            convert(self.model)
        self.attach_references()
        if self._recompute:
            self.model.checkpoint_activations()
        if self._compiled:
            for block in self.model.blocks():  # the whole would break at every mask and compile anew for every batch
                block.compile(dynamic=True)

    def judges(self) -> list[Learned]:
        """The models that objectives ask for rewards."""
        rewards = (getattr(objective, "reward", None) for _, objective in self._named_objectives())
        return [reward for reward in rewards if isinstance(reward, Learned)]

    def attach_references(self) -> None:
        """Objectives that compare get the model as it is now."""
        self._copies: list[nn.Module] = []
        for _, objective in self._named_objectives():
            if isinstance(objective, Comparing) and objective.reference:
                objective.frozen = frozen = Frozen(self.model)
                self._copies += [frozen.copy] if frozen.copy is not None else []

    def read_with(self, tokenizer: Tokenizer) -> None:
        """Objectives that have to know what pieces mean get the tokenizer."""
        for _, objective in self._named_objectives():
            if isinstance(objective, Reading):
                objective.tokenizer = tokenizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = apply_shares(self._optimizer(self._groups(self)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning does without autocast: under it a fused optimizer is refused, for the sake of a loss scaler that
        bf16 does not have."""
        plugin = self.trainer.precision_plugin
        scaled = getattr(plugin, "scaler", None) is not None
        clip = plugin.clip_gradients if scaled else partial(Precision.clip_gradients, plugin)
        clip(optimizer, gradient_clip_val or 0.0, GradClipAlgorithmType(gradient_clip_algorithm or "norm"))

    def on_fit_start(self) -> None:
        data = datamodule_of(self.trainer)
        self.read_with(data.pipeline.tokenizer)
        if self.quantizer and self.trainer.is_global_zero:
            print(self.quantizer.told(self.model), flush=True)
        for _, objective in self._named_objectives():
            if isinstance(objective, Speaking):
                objective.speaker = Speaker(self.model, data.pipeline.tokenizer)
        pieces, vocab = data.pipeline.tokenizer.size, self.model.decoder.vocab
        if pieces > vocab:
            raise DataError(f"model.decoder.vocab={vocab}: data.tokenizer has {pieces} pieces; set it to {pieces}")

        callbacks: Any = getattr(self.trainer, "callbacks")  # noqa: B009  (Lightning's stub leaves it out)
        watching = [c for c in callbacks if isinstance(c, EarlyStopping) and c.monitor.startswith("val/")]
        if watching and data.validation is None:
            told = f"callbacks: early stopping watches {watching[0].monitor}, and {data.root} has no validation split"
            raise DataError(f"{told}; pack one, or leave the callback out")
        if lacking := sorted(set(self.model.modalities) - set(data.pipeline.modalities)):
            raise DataError(
                f"model.encoders.{lacking[0]}: the data gives none (data.pipeline.patchify, text_pieces for text); add "
                f"it there, or leave the encoder out"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["began_with"] = self._began_with
        checkpoint["judged_by"] = [judge.sha256 for judge in self.judges()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A point saved after a step was begun, by an error or a signal, stands for that step's beginning.

        Where the run was moved since, so were the files that the point names.
        """
        if checkpoint.get("began_with", self._began_with) != self._began_with:
            raise DataError("checkpoint: is not the one that this run began with; put it back, or start a new run")
        judged_by = [judge.sha256 for judge in self.judges()]
        if checkpoint.get("judged_by", judged_by) != judged_by:
            raise DataError(
                "reward.checkpoint: is not the one that this run began with; put it back, or start a new run"
            )
        accumulate = self.trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        progress = loop["epoch_loop.batch_progress"]  # Lightning counts micro-batches
        begun = progress["total"]["ready"] - checkpoint["global_step"] * accumulate
        if 0 < begun <= accumulate:
            for counter in (progress["current"], progress["total"]):
                counter.update(dict.fromkeys(("ready", "started", "processed", "completed"), counter["ready"] - begun))
        points.find_again(self.trainer.checkpoint_callbacks, checkpoint.get("callbacks", {}))

    def _named_objectives(self) -> list[tuple[str, Objective]]:
        return list(self.objectives.items())  # pyright: ignore[reportReturnType]  (ModuleDict forgets what it holds)

    def count(self, batch: Batch) -> dict[str, int]:
        """What each objective will average over in this micro-batch; the loader sums it over the step and the ranks."""
        return {name: objective.count(batch) for name, objective in self._named_objectives()}

    @property
    def logs_now(self) -> bool:
        """Whether the step that is being taken is one that loggers are told of."""
        return self.logs(self.global_step + 1)

    def logs(self, done: int) -> bool:
        """Whether loggers are told of the step that made it `done` steps; of none where `log_every` is 0."""
        return self.log_every > 0 and done % self.log_every == 0

    @property
    def log_every(self) -> int:
        return getattr(self.trainer, "log_every_n_steps")  # noqa: B009  (Lightning's stub of Trainer leaves it out)

    def losses(self, batch: Batch) -> tuple[dict[str, dict[str, Loss]], Outputs | None]:
        """Every objective's losses, and what the model made of the batch as it is. Objectives that do not change the
        batch share that one forward."""
        outputs = None
        result = {}
        for name, objective in self._named_objectives():
            view = objective.views(batch)
            if view is batch:
                outputs = self.model(batch) if outputs is None else outputs
                result[name] = objective(outputs, batch)
            else:
                result[name] = objective(self.model(view), view)
        return result, outputs

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Random numbers that belong to the micro-batch, wherever the run was begun; and the loggers' step, which
        Lightning counts by itself and one too far where it goes on behind a validation."""
        micro = batch_idx % self.trainer.accumulate_grad_batches
        stripe = micro * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(stable_hash("micro-batch", self._seed, self.global_step, stripe))
        if self.quantizer and self.quantizer.start:  # else it rounds from the beginning
            for one in (self.model, *self._copies):
                self.quantizer.at_step(one, self.global_step)
        if not micro:
            self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses, _ = self.losses(batch)
        total = torch.zeros((), device=self.device)
        for name, parts in losses.items():
            for part in (part for part in parts.values() if part.trained):
                total = total + self._weights[name] * part.sum / max(1, batch.counts[name])
        if not torch.isfinite(total):
            keys = ", ".join(batch.keys)
            raise DataError(
                f"the loss of step {self.global_step} is {total.item()}; nothing was updated. Samples: {keys}"
            )
        if self.logs_now:
            for label, part in (item for parts in losses.values() for item in parts.items()):
                self._trained[label].add(float(part.sum.detach()), part.count)
                for source, (loss, count) in by_source(part, batch).items():
                    self._trained[f"{label}/{source}"].add(loss, count)
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._loss = total.detach() + (0 if begins else self._loss)  # a micro-batch has its share of the step's loss
        shown = {"prog_bar": True, "batch_size": len(batch.keys), "sync_dist": True, "reduce_fx": "sum"}
        self.log("train/loss", self._loss, **shown)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        # DDP averages over ranks and Lightning divides by the accumulation, but the count is already a global one.
        return total * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What was gathered for a logged step; `log` would tell the last value again where a step has none."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches or not self.logs(self.global_step):
            return
        trained = means_of_all(self._trained)
        self.told.update({f"train/{label}": mean.value for label, mean in trained.items() if mean.count})
        for logger in self.trainer.loggers if self.told else ():
            logger.log_metrics(self.told, self.global_step - 1)
        self.told.clear()
        self._trained.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Counts the losses; the embeddings of the batch's real parts go to the callbacks."""
        losses, outputs = self.losses(batch)
        for name, parts in losses.items():
            for label, part in parts.items():
                self._validated[name if part.trained else "", label].add(float(part.sum), part.count)
                for source, (loss, count) in by_source(part, batch).items():
                    self._validated["", f"{label}/{source}"].add(loss, count)
        embeddings = outputs.embeddings if outputs else {}
        return {name: x[batch.streams[name].owner >= 0].detach() for name, x in embeddings.items()}

    def on_validation_epoch_end(self) -> None:
        of_objective: dict[str, Mean] = defaultdict(Mean)
        for (name, label), mean in means_of_all(self._validated).items():
            if mean.count:
                self.log(f"val/{label}", mean.value)
            of_objective[name].add(mean.sum, mean.count)
        total = sum(weight * of_objective[name].value for name, weight in self._weights.items())
        self.log("val/loss", total, prog_bar=True)
        self._validated.clear()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)
