"""What `mmfusion evaluate` is asked, read before anything is loaded: which checkpoints, which shards, which tasks."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmfusion import checkpoint, config
from mmfusion.checkpoint import CheckpointError
from mmfusion.cli.resume import ours
from mmfusion.config import ConfigError
from mmfusion.evaluation import points
from mmfusion.evaluation.measure import Task


@dataclass(frozen=True)
class Asked:
    """Checkpoints by a short name, the shards' folder, and tasks by name."""

    folders: dict[str, Path]
    root: Path
    tasks: Mapping[str, Task]


def asked(
    given: Sequence[str],
    *,
    root: Path | None,
    only: Sequence[str],
    config_dir: Path | None,
    allow: Collection[str],
    along: bool,
) -> Asked:
    """`given` are folders, patterns of folders, and overrides; `only` names tasks; `along` wants one run.

    Raises CheckpointError or ConfigError in one line for whatever cannot be evaluated.
    """
    named = [item for item in given if _means_folder(item)]
    overrides = [item for item in given if item not in named]
    folders = _folders(named)
    at = {folder: _run_of(folder) for folder in folders}
    if along:
        folders = [_the_run(at)]
    else:
        for folder in folders:
            _locate(folder)
    own = {str(_root_of(run)) for run in at.values() if run}
    if root is None and len(own) != 1:
        reason = f"were trained on different shards ({', '.join(sorted(own))})" if own else "do not say their shards"
        raise ConfigError([f"{', '.join(map(str, folders))}: {reason}; give those to evaluate on: --data-root FOLDER"])
    where = root or Path(own.pop())
    home = next((run for run in at.values() if run and _root_of(run).resolve() == where.resolve()), None)
    tasks = _tasks(home, overrides, config_dir, allow)
    return Asked(dict(zip(_short(folders), folders, strict=True)), where, _picked(tasks, only))


# -------------------------------------------------------------------------------------------------------------- folders


def _means_folder(item: str) -> bool:
    """No override: `sweeps/seed=*` has a folder before its first `=`, `seed=*` is there to be found."""
    return "=" not in item or "/" in item.partition("=")[0] or Path(item).exists() or bool(glob.glob(item))


def _folders(items: Sequence[str]) -> list[Path]:
    """Every folder once; a pattern stands for those of its matches that hold a checkpoint."""
    found: dict[Path, Path] = {}
    for item in items:
        if Path(item).exists() or not glob.has_magic(item):
            matches = [Path(item)]
        else:
            matches = [Path(match) for match in sorted(glob.glob(item)) if _holds_checkpoint(Path(match))]
            if not matches:
                raise CheckpointError(f"{item}: no folder with a checkpoint matches")
        for match in matches:
            found.setdefault(_place(match), match)
    if not found:
        raise ConfigError(["evaluate: give at least one run or checkpoint folder before the overrides"])
    return list(found.values())


def _place(folder: Path) -> Path:
    """Where a run stands, also where its checkpoint folder is given."""
    return folder.resolve().parent if folder.name == "checkpoint" else folder.resolve()


def _holds_checkpoint(folder: Path) -> bool:
    try:
        checkpoint.locate(folder)
    except CheckpointError:
        return False
    return True


def _locate(folder: Path) -> None:
    try:
        checkpoint.locate(folder)
    except CheckpointError as error:
        if points.steps(folder):
            raise CheckpointError(f"{folder}: no checkpoint yet; its resume points: --curve {folder}") from error
        raise


def _run_of(folder: Path) -> Path | None:
    """The run folder that a run or checkpoint folder means, None for a checkpoint that stands alone."""
    for at in (folder, folder.resolve().parent):
        data = points.configuration(at).get("data")
        if isinstance(data, dict) and isinstance(data.get("root"), str):
            return at
    return None


def _root_of(run: Path) -> Path:
    return Path(config.from_environment(points.configuration(run)["data"]["root"]))


def _the_run(at: Mapping[Path, Path | None]) -> Path:
    if len(at) > 1:
        raise ConfigError([f"--curve: is of one run, not of {len(at)}"])
    ((folder, run),) = at.items()
    if run is None:
        raise CheckpointError(f"{folder}: no run folder (it has no config.yaml of a run); --curve is of a run")
    return run


def _short(folders: Sequence[Path]) -> list[str]:
    """Folders by the parts of their paths in which they differ."""
    places = [_place(folder) for folder in folders]
    if len(places) == 1:
        return [f"{places[0].parent.name}/{places[0].name}"]
    above = Path(os.path.commonpath([place.parent for place in places]))
    return [str(place.relative_to(above)) for place in places]


# ---------------------------------------------------------------------------------------------------------------- tasks


def _tasks(
    run: Path | None, overrides: Sequence[str], config_dir: Path | None, allow: Collection[str]
) -> Mapping[str, Task]:
    """The run's own tasks, or those of `evaluation=NAME`, or those for any shards; then `evaluation.TASK.KEY=VALUE`."""
    groups = [one for one in overrides if one.startswith("evaluation=")]
    values = [one for one in overrides if one not in groups]
    for one in values:
        if not one.startswith("evaluation."):
            hint = "; the shards are given by --data-root" if one.startswith("data") else ""
            raise ConfigError([f"{one}: evaluate takes evaluation=NAME and evaluation.TASK.KEY=VALUE only{hint}"])
    tree = points.configuration(run).get("evaluation") if run and not groups else None
    if run and tree:
        _refuse_foreign(run, tree, config_dir, allow)
    else:
        tree = config.plain(config.compose(groups or ["evaluation=any"], config_dir))["evaluation"]
    try:
        merged = OmegaConf.merge({"evaluation": tree}, OmegaConf.from_dotlist(values))
    except Exception as error:  # YAML's errors and OmegaConf's
        raise ConfigError([f"{' '.join(values)}: not of the form key=value ({str(error).splitlines()[0]})"]) from error
    settled: Any = OmegaConf.to_container(merged, resolve=True)
    for name in settled["evaluation"]:
        if name not in tree and "_target_" not in (settled["evaluation"][name] or {}):
            raise ConfigError(
                [f"evaluation.{name}: no such task{config.near(name, tree)}; there are: {', '.join(tree)}"]
            )
    config.check(settled, _schema)
    return config.build_arguments(settled, _schema)["evaluation"]


def _schema(*, evaluation: Mapping[str, Callable[..., Any]]) -> None:
    """What the configuration of an evaluation must be."""


def _refuse_foreign(run: Path, tree: Mapping[str, Any], config_dir: Path | None, allow: Collection[str]) -> None:
    """A run folder may come from anywhere: it names functions of ours, of the user's own files, or what is allowed."""
    config.refuse_interpolations(tree)
    trusted = ours(tree) | set(allow) | config.targets_in([config_dir] if config_dir else [])
    for key, target in config.targets(tree):
        if target not in trusted:
            remedy = f"if it is yours and you trust it: --allow {target}"
            problem = f"evaluation.{key}: {target!r} is not called from a run folder"
            raise ConfigError([f"{run / 'config.yaml'}: {problem}; {remedy}"])


def _picked(tasks: Mapping[str, Task], only: Sequence[str]) -> Mapping[str, Task]:
    for name in only:
        if name not in tasks:
            raise ConfigError([f"--task {name}: no such task{config.near(name, tasks)}; there are: {', '.join(tasks)}"])
    return {name: task for name, task in tasks.items() if name in only} if only else tasks
