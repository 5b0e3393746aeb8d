"""A run from its checked configuration to its report: train, evaluate, write.

The signature of `train` is the schema of the configuration's root (`conf/train.yaml`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le, MinLen
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion import runs
from mmfusion.checkpoint import fill, locate, quantization
from mmfusion.checkpoint.layout import weights_sha256
from mmfusion.cli import ranks
from mmfusion.cli.finish import Earlier, finish
from mmfusion.cli.slurm import Slurm
from mmfusion.config import ConfigError
from mmfusion.converters.lora import Lora
from mmfusion.converters.quantize import Quantize
from mmfusion.data.datamodule import DataModule
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.training.callbacks import StopBetweenSteps
from mmfusion.training.module import TrainingModule
from mmfusion.training.optim import ParameterGroups


@dataclass(frozen=True)
class Paths:
    """Where runs are kept, this run's folder (by default `runs/name/time`), and what loggers know it by."""

    runs: Annotated[str, MinLen(1)] = "runs"
    run: Annotated[str, MinLen(1)] | None = None
    id: Annotated[str, MinLen(1)] | None = None


def train(
    tree: Mapping[str, Any],
    /,
    *,
    name: Annotated[str, MinLen(1)],
    seed: Annotated[int, Ge(0), Le(2**32 - 1)],
    steps: Annotated[int, Gt(0)],
    data: DataModule,
    model: Callable[[], MultimodalModel],
    objective: Mapping[str, Callable[[], nn.Module]],
    optim: Callable[..., Optimizer],
    scheduler: Callable[..., LRScheduler],
    trainer: Callable[..., pl.Trainer],
    callbacks: Mapping[str, Callback],
    logger: Mapping[str, Logger],
    evaluation: Mapping[str, Callable[..., Any]],
    paths: Paths,
    parameters: ParameterGroups,
    converter: Mapping[str, Lora | Quantize] | None = None,
    weights: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    keep: Literal["last", "best"] = "last",
    compile: bool = False,
    gradient_checkpointing: bool = False,
    stage: Literal["pretrain", "finetune", "preference", "reward", "policy"] = "pretrain",
    earlier: Mapping[str, Earlier] | None = None,
    checkpoint: str | None = None,
    resume: str | None = None,
    launcher: Slurm | None = None,
) -> None:
    """Train for `steps` optimizer steps, evaluate once on the test split, write checkpoint and report into `paths.run`.

    The checkpoint has the last weights, or the `best`: those of the lowest validation loss. Where it has tasks of its
    own, `earlier` stages' are asked again, of the `checkpoint` it began with and of its own. `launch` heeds `launcher`.
    `tree` is the resolved configuration that goes into the checkpoint; everything else is built from it. Raises
    KeyboardInterrupt or SIGTERMException where a signal ended the training.
    """
    assert paths.run is not None
    run = Path(paths.run)
    if resume and (run / "report.html").exists():
        print(f"{run}: trained and evaluated already, nothing to do; its report is {run / 'report.html'}")
        return
    point = runs.newest_good(run) if resume else None
    parent = locate(Path(checkpoint)) if checkpoint else None
    module = TrainingModule(
        model=model,
        objectives=objective,
        weights=weights or {},
        optimizer=optim,
        scheduler=scheduler,
        seed=seed,
        parameters=parameters,
        start=_beginning(parent) if parent else None,
        compiled=compile,
        recompute=gradient_checkpointing,
        converters=converter,
        began_with=weights_sha256(parent) if parent else None,
    )
    fitter = _fitter(trainer, run, steps, callbacks.values(), logger.values())
    if point and fitter.is_global_zero:
        _forget_after(runs.step_of(point), run, logger.values())
    seconds = {"training": _fit(fitter, module, data, point, callbacks.values())}
    data.skips.end()
    if not fitter.is_global_zero:
        return
    runs.bring_history_back(run)
    if not fitter.global_step:
        return  # a callback had something else to do, such as finding a learning rate
    print(f"trained {fitter.global_step} steps in {seconds['training']:.1f} s", flush=True)
    finish(tree, run, module, data, evaluation, choose_weights(fitter, module, keep), seconds, parent, earlier or {})


def _beginning(parent: Path) -> Callable[[nn.Module], None]:
    """What fills a new model with a checkpoint's weights; told where these are integers."""
    if quantization(parent) and not ranks.rank():
        print(f"{parent} holds integers; training begins with what they stand for, in full", flush=True)
    return partial(fill, folder=parent)


def _fitter(
    trainer: Callable[..., pl.Trainer], run: Path, steps: int, callbacks: Iterable[Callback], loggers: Iterable[Logger]
) -> pl.Trainer:
    """Raises ConfigError where several processes cannot do what one can."""
    max_steps = runs.ended_at(run) or steps
    fitter = trainer(max_steps=max_steps, callbacks=[*callbacks], logger=[*loggers], default_root_dir=run)
    every = getattr(fitter, "val_check_interval", None)  # a time has none
    if isinstance(every, int):  # Lightning counts micro-batches between validations
        fitter.val_check_interval = every * fitter.accumulate_grad_batches
    if fitter.world_size > 1:
        _refuse_several(fitter)
    return fitter


def _refuse_several(fitter: pl.Trainer) -> None:
    """Raises ConfigError where several processes cannot do what one can."""
    if isinstance(fitter.strategy, ModelParallelStrategy):
        raise ConfigError(["trainer.strategy: weights are not divided over devices yet; set trainer=ddp"])


def _forget_after(step: int, run: Path, loggers: Iterable[Logger]) -> None:
    """What was logged after the step is logged again."""
    runs.set_history_aside(run, until=step)
    for log in loggers:
        if isinstance(log, TensorBoardLogger):
            log._kwargs["purge_step"] = step


def _fit(
    fitter: pl.Trainer, module: TrainingModule, data: DataModule, point: Path | None, callbacks: Iterable[Callback]
) -> float:
    """The seconds. Raises KeyboardInterrupt or SIGTERMException where a signal ended it, or came in its last step."""
    began, threads = time.monotonic(), torch.get_num_threads()
    # A core for each worker: two threads that share theirs with the worker wait for one another at every operation.
    torch.set_num_threads(max(1, threads - data.workers))
    try:
        with ranks.watching(fitter):
            fitter.fit(module, datamodule=data, ckpt_path=point, weights_only=True)
            data.validation_skips.of_all()
    except SystemExit as error:  # Lightning's end of a Ctrl-C, after its callbacks have saved
        if fitter.state.status != TrainerStatus.INTERRUPTED or isinstance(error, SIGTERMException):
            raise
        raise KeyboardInterrupt from error
    finally:
        torch.set_num_threads(threads)
    for callback in callbacks:
        if isinstance(callback, StopBetweenSteps):
            callback.stop_if_asked()
    return time.monotonic() - began


def choose_weights(fitter: pl.Trainer, module: pl.LightningModule, keep: Literal["last", "best"]) -> int:
    """The step whose weights the module holds afterwards; says where validation was better before the end."""
    watching = [c for c in fitter.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor == "val/loss"]
    # Where it lies now: the run may have been moved.
    kept = [Path(c.dirpath or "") / Path(c.best_model_path).name for c in watching if c.best_model_path]
    if not kept:
        if keep == "best":
            print("keep=best: nothing was validated, the last weights are kept", flush=True)
        return fitter.global_step
    if keep == "best":
        found = torch.load(kept[0], map_location="cpu", weights_only=True)
        module.load_state_dict(found["state_dict"])
        print(f"kept the weights of step {found['global_step']}, of the lowest validation loss", flush=True)
        return int(found["global_step"])
    lowest, last = watching[0].best_model_score, fitter.callback_metrics.get("val/loss")
    if lowest is not None and last is not None and last > 1.02 * lowest:
        step = kept[0].stem.rpartition("=")[2]
        told = f"validation loss was {lowest:.3f} at step {step} and is {last:.3f} now"
        print(f"{told}: keep=best keeps those weights, callbacks=[default,early_stopping] stops there", flush=True)
    return fitter.global_step
