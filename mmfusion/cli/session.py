"""A run from its checked configuration to its report: train, evaluate, write.

The signature of `train` is the schema of the configuration's root (`conf/train.yaml`).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
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
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion import api, checkpoint, config, report, runs
from mmfusion.checkpoint import fill, locate, quantization
from mmfusion.checkpoint.layout import QUANTIZATION, weights_sha256
from mmfusion.cli import ranks
from mmfusion.cli.slurm import Slurm
from mmfusion.config import ConfigError
from mmfusion.converters.lora import Lora
from mmfusion.converters.quantize import Quantize
from mmfusion.data.datamodule import DataModule
from mmfusion.data.shards import read_manifest
from mmfusion.evaluation import comparison
from mmfusion.evaluation import run as evaluate
from mmfusion.evaluation.bench import Bench
from mmfusion.evaluation.measure import Row, ask
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.report import terminal
from mmfusion.runs import energy
from mmfusion.training.callbacks import StopBetweenSteps
from mmfusion.training.energy import metered
from mmfusion.training.health import without_gradient
from mmfusion.training.module import TrainingModule
from mmfusion.training.optim import ParameterGroups
from mmfusion.training.reference import Learned
from mmfusion.types import DataError

# What `train` itself gives the trainer, and the key that says it.
TRAINER = {"max_steps": "steps", "callbacks": "callbacks", "logger": "logger", "default_root_dir": "paths.run"}


@dataclass(frozen=True)
class Paths:
    """Where runs are kept, this run's folder (by default `runs/name/time`), and what loggers know it by."""

    runs: Annotated[str, MinLen(1)] = "runs"
    run: Annotated[str, MinLen(1)] | None = None
    id: Annotated[str, MinLen(1)] | None = None


@dataclass(frozen=True)
class Earlier:
    """What an earlier stage was asked: its tasks, on the shards under `root`."""

    root: Annotated[str, MinLen(1)]
    tasks: Mapping[str, Callable[..., Any]]


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
    began = time.monotonic()
    _fit(fitter, module, data, point, callbacks.values())
    data.skips.end()
    if not fitter.is_global_zero:
        return
    runs.bring_history_back(run)
    seconds = {"training": time.monotonic() - began}
    if not fitter.global_step:
        return  # a callback had something else to do, such as finding a learning rate
    print(f"trained {fitter.global_step} steps in {seconds['training']:.1f} s", flush=True)
    _finish(tree, run, module, data, evaluation, choose_weights(fitter, module, keep), seconds, parent, earlier or {})


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
) -> None:
    """Raises KeyboardInterrupt or SIGTERMException where a signal ended it, or came in its last step."""
    threads = torch.get_num_threads()
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


def _finish(
    tree: Mapping[str, Any],
    run: Path,
    module: TrainingModule,
    data: DataModule,
    tasks: Mapping[str, Callable[..., Any]],
    steps: int,
    seconds: dict[str, float],
    parent: Path | None,
    earlier: Mapping[str, Earlier],
) -> None:
    """Checkpoint, evaluation, metrics, report: everything from the checkpoint as saved, as a reader would load it."""
    runs.mark(run, "evaluating", step=steps)
    _save(tree, run, module, data, steps, parent)
    began = time.monotonic()
    # Own classes in this run's configuration: the user named them, on the command line or in their own files.
    allowed = {str(target) for part in (tree["model"], tree["data"]["pipeline"]) for _, target in config.targets(part)}
    model = metered(api.load(run / "checkpoint", allow=allowed), run)
    done = evaluate(model, tasks, data.root)
    compared = _before_and_after(earlier, parent, model, allowed) if parent and tasks else []
    seconds["evaluation"] = time.monotonic() - began
    for name, reason in done.left_out.items():
        print(f"task {name} left out: {reason}", flush=True)
    runs.write(run / "metrics.json", json.dumps(done.metrics, indent=1, ensure_ascii=False))
    counts = {f"skipped in training, {reason}": str(n) for reason, n in data.skips.skipped.items()}
    counts |= {f"skipped in validation, {reason}": str(n) for reason, n in data.validation_skips.skipped.items()}
    if data.masked:
        counts["values of series not measured, masked"] = str(data.masked)
    if still := without_gradient(run):
        counts["parameters that no gradient reached"] = ", ".join(still)
    examples = report.collect(model, done)
    spent = model.spent()
    report.write(
        run / "report.html",
        title=runs.without_secrets(str(tree["name"])),
        facts=report.facts_of(run, steps=steps, seconds=seconds),
        history=run / "metrics.csv",
        evaluation=done,
        examples=examples,
        answers=report.answered(done),
        counts=counts or {"samples skipped in training": "none"},
        earlier=compared,
        energy=spent,
    )
    card = report.card(runs.without_secrets(str(tree["name"])), read_manifest(data.root), done.metrics, model)
    checkpoint.write_card(run / "checkpoint", card)
    print(f"evaluated in {seconds['evaluation']:.0f} s\n")
    terminal.show(terminal.metrics(done.metrics))
    if compared:
        runs.write(run / "earlier.json", json.dumps(compared, indent=1, ensure_ascii=False))
        print(f"\nwhat earlier stages were asked, before and after: {run / 'earlier.json'}")
    print(f"\nenergy      {energy.line(spent)}")
    print(f"checkpoint  {run / 'checkpoint'}\nmetrics     {run / 'metrics.json'}")
    print(f"report      {run / 'report.html'}  (open it in a browser: {(run / 'report.html').resolve().as_uri()})")


def _save(
    tree: Mapping[str, Any], run: Path, module: TrainingModule, data: DataModule, steps: int, parent: Path | None
) -> None:
    """The checkpoint: of integers where a converter rounds."""
    config_of, rounded = {"model": tree["model"], "pipeline": tree["data"]["pipeline"]}, {}
    if module.quantizer:
        module.quantizer.convert(module.model)
        config_of[QUANTIZATION] = module.quantizer.node
        rounded = {"quantized": {"scheme": module.quantizer.scheme, "how": "rounded while it was trained"}}
    checkpoint.save(
        run / "checkpoint",
        config=config_of,
        model=module.model,
        tokenizer=data.tokenizer,
        lineage=checkpoint.lineage(
            stage=tree.get("stage", "pretrain"),  # a run from before there were stages
            step=steps,
            seed=int(tree["seed"]),
            data=data.root,
            commit=runs.commit(),
            parents=[*([parent] if parent else []), *(judge.folder for judge in module.judges())],
        )
        | rounded,
        card="",
    )


def _before_and_after(
    earlier: Mapping[str, Earlier], parent: Path, model: api.Model, allowed: Collection[str]
) -> list[Row]:
    """Rows of every earlier task, `before` and `after`; a stage whose shards are not there is named."""
    rows: list[Row] = []
    before = api.load(parent, allow=allowed) if earlier else model
    for stage, asked in earlier.items():
        try:
            bench = Bench(before, Path(asked.root))
        except DataError as error:
            print(f"what stage {stage} was asked is left out: {error}", flush=True)
            continue
        of_both = {"before": bench, "after": bench.with_model(model)}
        done = {name: ask(one, asked.tasks.items()) for name, one in of_both.items()}
        rows += [{"stage": stage, **row} for row in comparison.rows(done)]
    return rows


def _check_rounding(tree: Mapping[str, Any]) -> None:
    """Raises ConfigError for a rounding that would not be what the run's end says, or a checkpoint that has another."""
    parent = tree.get("checkpoint") if not tree.get("resume") else None
    theirs = checkpoint.quantization(Path(parent)) if parent else None
    ours = f"{Quantize.__module__}.{Quantize.__qualname__}"
    for name, node in (tree.get("converter") or {}).items():
        if node["_target_"] != ours:
            continue
        converter = Quantize(**{argument: value for argument, value in node.items() if argument != "_target_"})
        key = f"converter.{name}"
        if converter.start >= tree["steps"]:
            raise ConfigError(
                [f"{key}.start={converter.start}: of {tree['steps']} steps none would round; set it lower"]
            )
        if converter.start and tree.get("keep") == "best":
            raise ConfigError([f"{key}.start: keep=best may keep weights from before it; set keep=last, or start=0"])
        if converter.distillation and tree.get("stage") == "policy":
            raise ConfigError([f"{key}.distillation: prompts have no answers to be taught; leave it out"])
        if theirs and converter.node != theirs:
            other = next((k for k, value in converter.node.items() if value != theirs.get(k)), "group")
            told = f"is quantized already, with {other}={theirs.get(other)}, not {converter.node.get(other)}"
            remedy = f"set {key}.{other} so, or begin with the checkpoint that it was made of"
            raise ConfigError([f"checkpoint={parent}: {told}; {remedy}"])


def _try_optimizer(tree: Mapping[str, Any]) -> None:
    """torch's own checks of rates, betas and schedules, before any data is opened: they stand in no signature."""
    key = "optim"
    try:
        optimizer = config.build(tree["optim"])([nn.Parameter(torch.zeros(1))])
        key = "scheduler"
        config.build(tree["scheduler"])(optimizer)
    except (ValueError, TypeError) as error:
        raise ConfigError([f"{key}: {' '.join(str(error).split())}"]) from error


def _refuse_unaveraged(callbacks: Mapping[str, Any]) -> None:
    """Raises ConfigError where weights would be saved without their average, which is only in what is saved whole."""
    nodes = {name: node for name, node in callbacks.items() if node}
    averaging = [name for name, node in nodes.items() if str(node["_target_"]).endswith("WeightAveraging")]
    raw = [name for name, node in nodes.items() if node.get("save_weights_only")]
    if averaging and raw:
        key = f"callbacks.{raw[0]}.save_weights_only"
        remedy = f"name it last, callbacks=[default,{averaging[0]}], or set {key}=false"
        raise ConfigError([f"{key}: true saves the weights without the average of callbacks.{averaging[0]}; {remedy}"])


def settled(cfg: DictConfig) -> dict[str, Any]:
    """The resolved and checked tree. Its `paths.run`, which other keys refer to, is set here where none was given."""
    if "${oc.env" in str(config.raw(cfg).get("name")):
        raise ConfigError(["name: must be plain text: it stands in folders and on pages"])
    try:
        if not cfg.paths.run:
            own = Path(cfg.paths.runs) / cfg.name / runs.timestamp()
            cfg.paths.run = ranks.folder_of_all() or str(own)
        cfg.paths.id = cfg.paths.id or hashlib.sha256(f"{cfg.paths.run} {time.time_ns()}".encode()).hexdigest()[:8]
    except (OmegaConfBaseException, TypeError):
        pass  # no folder or no name: the check says it better
    tree = config.plain(cfg)
    shared = [key for key in config.private(cfg) if re.match(r"model\.|data\.pipeline\.(?!tokenizer\.)", key)]
    if shared:
        remedy = "would stand in the checkpoint, which is shared; leave it out, and let the class read the environment"
        raise ConfigError([f"{key} {remedy}" for key in shared])
    config.check(tree, train, config.interpolated(cfg))
    if given := [name for name in TRAINER if name in tree["trainer"]]:
        raise ConfigError([f"trainer.{given[0]}: is given by {TRAINER[given[0]]}; set that"])
    if (precision := tree["trainer"].get("precision")) in ("bf16-true", "16-true"):
        raise ConfigError([f"trainer.precision: {precision} would halve times and places too; set bf16-mixed"])
    _refuse_unaveraged(tree["callbacks"])
    _try_optimizer(tree)
    if tree.get("checkpoint") and not tree.get("resume"):
        checkpoint.check_same(Path(tree["checkpoint"]), tree["model"], Path(tree["data"]["tokenizer"]))
    _check_rounding(tree)
    for _, node in config.nodes(tree["objective"], "objective"):
        if node.get("_target_") == f"{Learned.__module__}.{Learned.__qualname__}":
            checkpoint.check_vocabulary(Path(node["checkpoint"]), Path(tree["data"]["tokenizer"]))
    return tree
