"""`mmfusion train`: compose, check, make the run folder, train, evaluate, report.

The signature of `train` is the schema of the configuration's root (`conf/train.yaml`).
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import json
import logging
import platform
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import hydra
import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le, MinLen
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmfusion import api, checkpoint, config, report, runs
from mmfusion.config import ConfigError
from mmfusion.data.datamodule import DataModule
from mmfusion.data.shards import read_manifest
from mmfusion.evaluation import run as evaluate
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.training.module import TrainingModule
from mmfusion.types import DataError

# What may change when a run goes on: nothing that decides which samples are met or what is done with them. (The number
# of workers decides that of threads, which may sum in another order: the same batches, not always the same bits.)
RUN_ONLY = (
    *(f"trainer.{name}" for name in ("log_every_n_steps", "enable_progress_bar", "profiler")),
    *("callbacks", "logger", "data.workers", "data.cache_mb"),
)
# What `train` itself gives the trainer, and the key that says it.
TRAINER = {"max_steps": "steps", "callbacks": "callbacks", "logger": "logger", "default_root_dir": "paths.run"}
# Packages whose own classes a run folder may name, beside what our configuration files and checkpoints do.
FAMILIES = ("torch.optim.", *(f"lightning.pytorch.{name}." for name in ("callbacks", "loggers", "profilers")))


@dataclass(frozen=True)
class Paths:
    """Where runs are kept, and this run's folder (by default `runs/name/time`)."""

    runs: Annotated[str, MinLen(1)] = "runs"
    run: Annotated[str, MinLen(1)] | None = None


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
    weights: Mapping[str, Annotated[float, Ge(0)]] | None = None,
    resume: str | None = None,
) -> None:
    """Train for `steps` optimizer steps, evaluate once on the test split, write checkpoint and report into `paths.run`.

    `tree` is the resolved configuration that goes into the checkpoint; everything else is built from it. Raises
    KeyboardInterrupt or SIGTERMException where a signal ended the training.
    """
    assert paths.run is not None
    run = Path(paths.run)
    if resume and (run / "report.html").exists():
        print(f"{run}: trained and evaluated already, nothing to do; its report is {run / 'report.html'}")
        return
    module = TrainingModule(
        model=model, objectives=objective, weights=weights or {}, optimizer=optim, scheduler=scheduler, seed=seed
    )
    fitter = trainer(
        max_steps=steps, callbacks=list(callbacks.values()), logger=list(logger.values()), default_root_dir=run
    )
    if fitter.world_size > 1:
        raise ConfigError(["trainer.devices: counts are not summed over ranks yet; train with trainer.devices=1"])
    point = runs.newest_good(run) if resume else None
    if point:
        runs.set_history_aside(run, until=runs.step_of(point))
    began = time.monotonic()
    threads = torch.get_num_threads()
    # A core for each worker: two threads that share theirs with the worker wait for one another at every operation.
    torch.set_num_threads(max(1, threads - data.workers))
    try:
        fitter.fit(module, datamodule=data, ckpt_path=point, weights_only=True)
    except SystemExit as error:  # Lightning's end of a Ctrl-C, after its callbacks have saved
        if fitter.state.status != TrainerStatus.INTERRUPTED or isinstance(error, SIGTERMException):
            raise
        raise KeyboardInterrupt from error
    finally:
        torch.set_num_threads(threads)
    data.skips.end()
    runs.bring_history_back(run)
    seconds = {"training": time.monotonic() - began}
    print(f"trained {fitter.global_step} steps in {seconds['training']:.0f} s", flush=True)
    _finish(tree, run, module, data, evaluation, fitter.global_step, seconds)


def _finish(
    tree: Mapping[str, Any],
    run: Path,
    module: TrainingModule,
    data: DataModule,
    tasks: Mapping[str, Callable[..., Any]],
    steps: int,
    seconds: dict[str, float],
) -> None:
    """Checkpoint, evaluation, metrics, report: everything from the checkpoint as saved, as a reader would load it."""
    checkpoint.save(
        run / "checkpoint",
        config={"model": tree["model"], "pipeline": tree["data"]["pipeline"]},
        model=module.model,
        tokenizer=data.tokenizer,
        lineage=checkpoint.lineage(step=steps, seed=int(tree["seed"]), data=data.root, commit=runs.commit()),
        card="",
    )
    began = time.monotonic()
    # Own classes in this run's configuration: the user named them, on the command line or in their own files.
    allowed = {str(target) for part in (tree["model"], tree["data"]["pipeline"]) for _, target in config.targets(part)}
    model = api.load(run / "checkpoint", allow=allowed)
    done = evaluate(model, tasks, data.root)
    seconds["evaluation"] = time.monotonic() - began
    for name, reason in done.left_out.items():
        print(f"task {name} left out: {reason}", flush=True)
    runs.write(run / "metrics.json", json.dumps(done.metrics, indent=1, ensure_ascii=False))
    counts = {f"skipped in training, {reason}": str(n) for reason, n in data.skips.skipped.items()}
    if data.masked:
        counts["values of series not measured, masked"] = str(data.masked)
    report.write(
        run / "report.html",
        title=str(tree["name"]),
        facts=report.facts_of(run, steps=steps, seconds=seconds),
        history=run / "metrics.csv",
        evaluation=done,
        examples=report.collect(model, done),
        counts=counts or {"samples skipped in training": "none"},
    )
    card = report.card(str(tree["name"]), read_manifest(data.root), done.metrics, model)
    checkpoint.write_card(run / "checkpoint", card)
    print(f"evaluated in {seconds['evaluation']:.0f} s\n")
    _print_metrics(done.metrics)
    print(f"\ncheckpoint  {run / 'checkpoint'}\nmetrics     {run / 'metrics.json'}")
    print(f"report      {run / 'report.html'}  (open it in a browser: {(run / 'report.html').resolve().as_uri()})")


def _print_metrics(metrics: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "metric", "value", "95% interval", "n", "chance", "baselines"):
        table.add_column(heading, justify="left" if heading in ("task", "metric", "baselines") else "right")
    for row in metrics:
        interval = "" if row["ci95"] is None else f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}"
        beside = ", ".join(f"{name} {value:.3g}" for name, value in row["baselines"].items())
        numbers = f"{row['value']:.3f}", interval, str(row["n"]), f"{row['chance']:.3f}"
        table.add_row(row["task"], row["metric"], *numbers, beside)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


# ------------------------------------------------------------------------------------------------------------- the verb


def run(options: argparse.Namespace) -> int:
    """The verb. Every failure ends in one line that says what to do; exit statuses stand in `cli.main`."""
    _keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"lightning\.")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    config_dir = Path(options.config_dir) if options.config_dir else None
    if options.multirun:
        return _sweep(options.overrides, config_dir)
    resumed, rest = _split_resume(options.overrides)
    return _run_one(_resumed(resumed, rest, options.allow) if resumed else config.compose(rest, config_dir))


def _keep_freed_memory() -> None:
    """glibc returns large freed blocks to the kernel and faults them in again each step: 15% of a step on a CPU."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 1 << 30)


def _split_resume(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """`resume=RUN` is a file name and not in Hydra's grammar: it is taken out before Hydra sees the rest."""
    given = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    return (Path(given[-1]) if given else None), [o for o in overrides if not o.startswith("resume=")]


def _resumed(run: Path, overrides: Sequence[str], allow: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run that goes on: its own, with nothing changed that a result depends on.

    A run folder may come from anywhere: classes that are not `_ours` are built only if `allow` names them.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError([f"resume={run}: no run folder (it has no config.yaml)"])
    for override in overrides:
        key = override.split("=")[0]
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RUN_ONLY):
            raise ConfigError([f"{key}: cannot change when a run goes on; only {', '.join(RUN_ONLY)} can"])
    try:
        kept: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
        moved = _moved(kept, str(kept["paths"]["run"]), str(run))
        tree = OmegaConf.create(moved)
        config.refuse_interpolations(moved)
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = str(error).splitlines()[0]
        raise ConfigError([f"{run / 'config.yaml'}: not as training wrote it ({reason}); start a new run"]) from error
    ours = _ours(moved)
    for key, target in config.targets(moved):
        if target not in allow and target not in ours:
            problem = f"{target!r} is not built from a run folder; if it is yours and you trust it: --allow {target}"
            raise ConfigError([f"{run / 'config.yaml'}: {key}: {problem}"])
    try:
        tree = OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides)), {"resume": str(run)})
    except Exception as error:  # YAML's errors and OmegaConf's
        raise ConfigError(
            [f"{' '.join(overrides)}: not of the form key=value ({str(error).splitlines()[0]})"]
        ) from error
    assert isinstance(tree, DictConfig)
    return tree


def _ours(tree: object) -> set[str]:
    """The targets in a tree that need no trust: named by our own files, or a class that FAMILIES define themselves."""
    known = checkpoint.BUILDABLE | config.targets_in([config.conf_dir()])

    def in_family(name: str) -> bool:
        if not name.startswith(FAMILIES):
            return False
        found = config.locate(name, "resume")
        return inspect.isclass(found) and f"{found.__module__}.".startswith(FAMILIES)  # else it is there by another way

    return {name for _, target in config.targets(tree) if (name := str(target)) in known or in_family(name)}


def _moved(value: Any, old: str, new: str) -> Any:
    """A tree in which every path in folder `old` leads into `new`: a run goes on where it lies now."""
    if isinstance(value, dict):
        return {name: item if name == "_target_" else _moved(item, old, new) for name, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    inside = isinstance(value, str) and (value == old or value.startswith(f"{old}/"))
    return new + value[len(old) :] if inside else value


def settled(cfg: DictConfig) -> dict[str, Any]:
    """The resolved and checked tree. Its `paths.run`, which other keys refer to, is set here where none was given."""
    try:
        if not cfg.paths.run:
            cfg.paths.run = str(Path(cfg.paths.runs) / cfg.name / runs.timestamp())
    except (OmegaConfBaseException, TypeError):
        pass  # no folder or no name: the check says it better
    tree = config.plain(cfg)
    config.check(tree, train, config.interpolated(cfg))
    if given := [name for name in TRAINER if name in tree["trainer"]]:
        raise ConfigError([f"trainer.{given[0]}: is given by {TRAINER[given[0]]}; set that"])
    return tree


def _terminate(number: int, frame: object) -> None:
    raise SIGTERMException


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is within as Ctrl-C does; while steps are taken, `StopBetweenSteps` hears it first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_one(cfg: DictConfig) -> int:
    """Check, make the folder, train. Nothing is left behind by a run that failed before its first step."""
    tree = settled(cfg)
    folder = Path(tree["paths"]["run"])
    resuming = bool(tree.get("resume"))
    foreign = sorted({str(target) for _, target in config.targets(tree)} - _ours(tree))
    again = " ".join([f"mmfusion train resume={folder}", *(f"--allow {target}" for target in foreign)])
    made: list[Path] = []
    if not resuming:
        try:
            made = runs.create(folder)
        except runs.RunError as error:
            print(f"mmfusion: {error}", file=sys.stderr)
            return 1
    try:
        if not resuming:
            runs.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.printable(cfg))))
        print(f"run folder  {folder}", flush=True)
        with _terminable():
            train(tree, **config.build_arguments(tree, train))
    except (KeyboardInterrupt, SIGTERMException) as stopped:
        print(f"stopped{_way_on(folder, made, again) or ' before the first step'}", file=sys.stderr)
        return 143 if isinstance(stopped, SIGTERMException) else 130
    except Exception as error:
        _tell(error, _way_on(folder, made, again))
        return 1
    return 0


def _way_on(folder: Path, made: Sequence[Path], again: str) -> str:
    """How a run that ended early can go on (`again`); what was `made` for one that saved nothing is removed."""
    if (folder / "checkpoint").exists() and not runs.resume_points(folder):
        return f"; trained, its checkpoint is {folder / 'checkpoint'}"
    if not made or runs.resume_points(folder):
        return f"; go on with: {again}"
    runs.discard(made)
    return ""


def _tell(error: Exception, way_on: str) -> None:
    """One line for what can be told in one; a traceback before it for what is our fault."""
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    if not isinstance(cause, (DataError, runs.RunError, checkpoint.CheckpointError, ConfigError, OSError, ValueError)):
        traceback.print_exception(error)
    print(f"mmfusion: {' '.join(str(cause).split()) or type(cause).__name__}{way_on}", file=sys.stderr)


def _sweep(overrides: Sequence[str], config_dir: Path | None) -> int:
    """`-m`, by Hydra's own sweeper and launcher: one run after another; one that fails does not end the others."""
    tree = config.conf_dir()
    statuses: dict[str, int] = {}
    stopped = 0

    def job(cfg: DictConfig) -> None:
        hydra_cfg = HydraConfig.get()
        with open_dict(cfg):
            cfg.paths.run = hydra_cfg.runtime.output_dir
        label = " ".join(o.lstrip("+") for o in hydra_cfg.overrides.task)
        print(f"\n{label}")
        try:
            statuses[label] = _run_one(cfg)
        except ConfigError as error:
            statuses[label] = 2
            print("\n".join(f"mmfusion: {problem}" for problem in error.problems), file=sys.stderr)
        except Exception as error:
            statuses[label] = 1
            _tell(error, "")
        except KeyboardInterrupt:
            statuses[label] = 130
        if statuses[label] in (130, 143):
            raise KeyboardInterrupt  # which ends Hydra's loop too

    given = config.as_overrides(overrides, [tree, *([config_dir] if config_dir else [])])
    sys.argv = [sys.argv[0], *given, "--multirun", *(["--config-dir", str(config_dir)] if config_dir else [])]
    try:
        hydra.main(version_base="1.3", config_path=str(tree), config_name=config.ROOT)(job)()
    except KeyboardInterrupt:
        stopped = 130
        print("stopped; the runs after this one were not begun", file=sys.stderr)
    print("\nsummary")
    words = {0: "done", 130: "stopped", 143: "stopped"}
    for label, status in statuses.items():
        print(f"  {words.get(status, f'failed ({status})')}  {label}")
    return max(stopped, *statuses.values())
