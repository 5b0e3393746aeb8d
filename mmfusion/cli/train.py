"""`mmfusion train`: compose, check, make the run folder, train, evaluate, report.

The signature of `train` is the schema of the configuration's root (`conf/train.yaml`).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
from annotated_types import Ge, Gt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion import config, runs
from mmfusion.config import ConfigError
from mmfusion.data.datamodule import DataModule
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.training.module import TrainingModule
from mmfusion.types import DataError

# What may change when a run goes on: nothing that a result depends on.
RUN_ONLY = ("trainer", "callbacks", "logger", "paths", "data.workers")


@dataclass(frozen=True)
class Paths:
    """Where runs are kept, and this run's folder (by default `runs/name/time`)."""

    runs: str = "runs"
    run: str | None = None


class Stopped(Exception):
    """A run that was asked to stop and left a resume point; `status` is the process's exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def train(
    tree: Mapping[str, Any],
    /,
    *,
    name: str,
    seed: Annotated[int, Ge(0)],
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
    weights: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    resume: str | None = None,
) -> None:
    """Train for `steps` optimizer steps, evaluate once on the test split, write checkpoint and report into `paths.run`.

    `tree` is the resolved configuration that goes into the checkpoint; everything else is built from it. Raises
    Stopped where a signal ended the training.
    """
    assert paths.run is not None
    run = Path(paths.run)
    module = TrainingModule(
        model=model, objectives=objective, weights=weights or {}, optimizer=optim, scheduler=scheduler, seed=seed
    )
    fitter = trainer(
        max_steps=steps, callbacks=list(callbacks.values()), logger=list(logger.values()), default_root_dir=run
    )
    point = runs.newest_good(run) if resume else None
    began = time.monotonic()
    try:
        fitter.fit(module, datamodule=data, ckpt_path=point, weights_only=True)
    except SIGTERMException as error:
        raise Stopped(143) from error
    except SystemExit as error:  # Lightning's end of a Ctrl-C, after its callbacks have saved
        if fitter.state.status == TrainerStatus.INTERRUPTED:
            raise Stopped(130) from error
        raise
    print(f"trained {fitter.global_step} steps in {time.monotonic() - began:.0f} s", flush=True)


def run(options: argparse.Namespace) -> int:
    """The verb. Every failure ends in one line that says what to do; exit statuses stand in `cli.main`."""
    warnings.filterwarnings("ignore", module=r"lightning\.")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config_dir = Path(options.config_dir) if options.config_dir else None
    if options.multirun:
        return _sweep(options.overrides, config_dir)
    return _run_one(_composed(options.overrides, config_dir))
