"""Runs as processes: one, or a sweep; signals; what an early end says."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mmfusion import config, runs
from mmfusion.cli import ranks, slurm
from mmfusion.cli.resume import ours, resumed, split_resume
from mmfusion.cli.session import train
from mmfusion.cli.settle import settled
from mmfusion.cli.signals import on_sigterm
from mmfusion.config import ConfigError
from mmfusion.errors import UserError
from mmfusion.ranks import together
from mmfusion.sweep.process import TRAIN, Child
from mmfusion.sweep.space import assigned

# What a sweep cannot be given, and what to do instead.
OF_ONE_RUN = {
    "resume": "goes on with one run; leave out -m",
    "paths.run": "is the folder of one run; each run of -m gets its own: paths.runs=FOLDER",
}


def launch(overrides: Sequence[str], config_dir: Path | None, *, multirun: bool, allow: Sequence[str]) -> int:
    """Train once, go on with a run (`resume=`), or sweep. Every failure ends in one line that says what to do."""
    _keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"lightning\.")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Which says what rank has died before it ends this process, where that is busy with other things.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    if multirun:
        return _sweep(overrides, config_dir)
    run, rest = split_resume(overrides)
    if run:
        cfg = slurm.of_resumed(resumed(run, slurm.without(rest), allow), rest, config_dir)
    else:
        cfg = config.compose(rest, config_dir)
    if slurm.wanted(cfg):
        return slurm.submit(settled(cfg), overrides, _flags(config_dir, allow))
    return _run_one(cfg, config_dir)


def _flags(config_dir: Path | None, allow: Sequence[str] = ()) -> list[str]:
    """What stands behind the overrides of a command that another process is to run."""
    allowed = [word for target in allow for word in ("--allow", target)]
    return [*allowed, *(["--config-dir", str(config_dir)] if config_dir else [])]


def _keep_freed_memory() -> None:
    """glibc returns large freed blocks to the kernel and faults them in again each step: 15% of a step on a CPU."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 1 << 30)


def _terminate(number: int, frame: object) -> None:
    """While steps are taken, `StopBetweenSteps` hears the signal first."""
    raise SIGTERMException


def _run_one(cfg: DictConfig, config_dir: Path | None) -> int:
    """Check, make the folder, train. Nothing is left behind by a run that failed before its first step."""
    if ranks.rank():
        return _follow(cfg)
    tree = settled(cfg)
    folder = Path(tree["paths"]["run"])
    resuming = bool(tree.get("resume"))
    made: list[Path] = []
    try:
        if resuming:
            runs.refuse_running(folder)
            if not (folder / "report.html").exists():
                runs.require_points(folder)
        else:
            made = runs.create(folder)
    except runs.RunError as error:
        print(f"mmfusion: {error}", file=sys.stderr)
        return 1
    try:
        if not resuming:
            runs.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.printable(cfg))))
        print(f"run folder  {folder}", flush=True)
        beating = runs.beating(folder, steps=tree["steps"], stage=tree.get("stage", "pretrain"))
        with on_sigterm(_terminate), beating, ranks.leading(folder):
            train(tree, **config.build_arguments(tree, train))
    except (KeyboardInterrupt, SIGTERMException) as stopped:
        runs.mark(folder, "stopped")
        print(f"stopped{_way_on(folder, made, tree, config_dir) or ' before the first step'}", file=sys.stderr)
        return 143 if isinstance(stopped, SIGTERMException) else 130
    except Exception as error:
        runs.mark(folder, "failed", message=_one_line(error))
        _tell(error, _way_on(folder, made, tree, config_dir))
        return 1
    finally:
        if wandb := sys.modules.get("wandb"):  # each run of a sweep is one of its own
            wandb.finish()
    return 0


def _follow(cfg: DictConfig) -> int:
    """Another rank of a run: it trains, and leaves the folder and all that is told to the first."""
    tree = settled(cfg)
    try:
        with on_sigterm(_terminate):
            train(tree, **config.build_arguments(tree, train))
    except (KeyboardInterrupt, SIGTERMException):
        return 0 if together() else 143  # agreed on, or not
    except Exception as error:
        print(f"mmfusion: rank {ranks.rank()}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _way_on(folder: Path, made: Sequence[Path], tree: Mapping[str, Any], config_dir: Path | None) -> str:
    """How a run that ended early can go on; what was `made` for one that saved nothing is removed."""
    foreign = sorted({str(target) for _, target in config.targets(tree)} - ours(tree))
    again = ["mmfusion", "train", f"resume={folder}", *_flags(config_dir, foreign)]
    if (folder / "checkpoint").exists():
        return f"; trained, its checkpoint is {folder / 'checkpoint'}; evaluate and report it with: {shlex.join(again)}"
    if not made or runs.resume_points(folder):
        return f"; go on with: {shlex.join(again)}"
    runs.discard(made)
    return ""


def _tell(error: Exception, way_on: str) -> None:
    """One line for what can be told in one; a traceback before it for what is our fault."""
    if not isinstance(_cause(error), (UserError, OSError, ValueError)):
        traceback.print_exception(error)
    print(f"mmfusion: {_one_line(error)}{way_on}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    cause = _cause(error)
    return runs.without_secrets(" ".join(str(cause).split())) or type(cause).__name__


def _cause(error: Exception) -> BaseException:
    return error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error


class Sweep(Callback):
    """Hears from Hydra where the runs of a sweep go."""

    folder: ClassVar[Path | None] = None
    made: ClassVar[Sequence[Path]] = ()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with suppress(OmegaConfBaseException):  # the sweep itself will say so
            Sweep.folder = Path(config.hydra.sweep.dir)
            Sweep.made = [path for path in (Sweep.folder, *Sweep.folder.parents) if not path.exists()]

    @staticmethod
    def tidy() -> None:
        """Remove the file in which Hydra keeps what was given, secrets too, and the folders that it made, if empty."""
        if Sweep.folder:
            (Sweep.folder / "multirun.yaml").unlink(missing_ok=True)
        with suppress(OSError):
            for path in Sweep.made:
                path.rmdir()


def _sweep(overrides: Sequence[str], config_dir: Path | None) -> int:
    """`-m`, by Hydra's own sweeper and launcher: one run after another; one that fails does not end the others."""
    for override in overrides:
        if (key := override.lstrip("+").partition("=")[0]) in OF_ONE_RUN:
            raise ConfigError([f"{key}: {OF_ONE_RUN[key]}"])
    tree = config.conf_dir()
    command = sys.argv
    ended: list[tuple[str, int, str]] = []
    stopped = 0

    def job(cfg: DictConfig) -> None:
        sys.argv = command  # each run's record tells it
        hydra_cfg = HydraConfig.get()
        folder = Path(hydra_cfg.runtime.output_dir)
        with suppress(OSError):
            folder.rmdir()  # made by Hydra: the run makes its own, and removes it if nothing came of it
        Sweep.tidy()
        with open_dict(cfg):
            cfg.paths.run = str(folder)
        label = " ".join(runs.masked(override.lstrip("+")) for override in hydra_cfg.overrides.task)
        print(f"\n{label}", flush=True)
        as_job = slurm.wanted(cfg)
        if as_job or _several(cfg):
            status = _apart([*hydra_cfg.overrides.task, assigned("paths.run", str(folder))], config_dir)
        else:
            status = _run_of_sweep(cfg, config_dir)
        ended.append((label, status, "handed in" if as_job else "done"))
        if status in (130, 143):
            raise KeyboardInterrupt  # which ends Hydra's loop too

    given = config.as_overrides(overrides, list(config.conf_trees(config_dir)), sweep=True)
    given.append(f"+hydra.callbacks.mmfusion._target_={__name__}.{Sweep.__qualname__}")
    Sweep.folder, Sweep.made = None, ()
    sys.argv = [command[0], *given, "--multirun", *(["--config-dir", str(config_dir)] if config_dir else [])]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it finds, for one line of ours
    try:
        with config.told_in_one_line():
            hydra.main(version_base="1.3", config_path=str(tree), config_name=config.ROOT)(job)()
    except KeyboardInterrupt:
        stopped = 130
        print("stopped; the runs after this one were not begun", file=sys.stderr)
    finally:
        sys.argv = command
        Sweep.tidy()
    print("\nsummary")
    for label, status, well in ended:
        words = {0: well, 130: "stopped", 143: "stopped"}
        print(f"  {words.get(status, f'failed ({status})')}  {label}")
    return max([stopped, *(status for _, status, _ in ended)])


def _several(cfg: DictConfig) -> bool:
    """Whether a run may have more than one process."""
    with suppress(OmegaConfBaseException):  # the run itself will say so
        devices, nodes = (OmegaConf.select(cfg, f"trainer.{key}") for key in ("devices", "num_nodes"))
        return devices != 1 or nodes not in (None, 1)
    return False


def _apart(overrides: Sequence[str], config_dir: Path | None) -> int:
    """A run of a sweep as a process of its own: the ranks that it starts repeat its command, not that of the sweep."""
    run = Child([*TRAIN, *overrides, *_flags(config_dir)])
    try:
        return run.wait()
    except KeyboardInterrupt:
        return 130
    except SystemExit:  # SIGTERM
        return 143


def _run_of_sweep(cfg: DictConfig, config_dir: Path | None) -> int:
    """The exit status that the run alone would have, whatever it ends in."""
    try:
        return _run_one(cfg, config_dir)
    except ConfigError as error:
        print("\n".join(f"mmfusion: {runs.without_secrets(p)}" for p in error.problems), file=sys.stderr)
        return 2
    except Exception as error:
        _tell(error, "")
        return 1
    except KeyboardInterrupt:
        return 130
