"""What runs there are, and what their folders say of them. Nothing in a folder is trusted, nothing executed."""

from __future__ import annotations

import functools
import math
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, RootModel

from mmfusion.runs import energy
from mmfusion.runs.energy import Energy
from mmfusion.runs.folder import RunError
from mmfusion.runs.history import Curves, logged
from mmfusion.runs.plain import plain_yaml
from mmfusion.runs.status import Status, load, read_status

DEPTH = 4  # of a run below the folder of all: name/time, of a sweep name/time/number


class Environment(BaseModel):
    command: str = ""
    started: str = ""
    commit: str | None = None
    mmfusion: str | None = None
    processor: str = ""
    cores: int | None = None
    packages: dict[str, str] = {}


class Measured(BaseModel):
    """A row of metrics.json, or a logged value: `name` is `task/metric`, with the modalities given where they vary."""

    task: str
    metric: str
    value: float
    n: int | None = None
    ci95: tuple[float, float] | None = None
    chance: float | None = None
    subset: list[str] | None = None

    @property
    def name(self) -> str:
        return f"{self.task}/{self.metric}"


class _Metrics(RootModel[list[Measured]]):
    root: list[Measured] = []


class _Data(BaseModel):
    fingerprint: str | None = None


class _Parent(BaseModel):
    name: str


class _Lineage(BaseModel):
    data: _Data = _Data()
    parents: list[_Parent] = []


@dataclass(frozen=True)
class Run:
    """What a run folder says. `config` is the resolved configuration, {} if the run ended before it was written."""

    folder: Path
    config: dict[str, Any]
    status: Status
    environment: Environment
    metrics: list[Measured]
    parents: list[str]
    data: str | None
    energy: Energy

    @property
    def name(self) -> str:
        name = self.config.get("name")
        return name if isinstance(name, str) else "?"

    @property
    def began(self) -> float | None:
        """Seconds since 1970, None if the run does not say."""
        try:
            return datetime.strptime(self.environment.started, "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except ValueError:
            return self.status.since or None

    @property
    def planned(self) -> int | None:
        steps = self.config.get("steps", self.status.steps)
        return steps if isinstance(steps, int) else None

    @functools.cached_property
    def curves(self) -> Curves:
        return logged(self.folder)

    @functools.cached_property
    def step(self) -> int:
        """Steps done; of a run without a heartbeat, as far as its log goes."""
        return self.status.step or max((int(steps[-1]) + 1 for steps, _ in self.curves.values()), default=0)

    @functools.cached_property
    def values(self) -> dict[str, Measured]:
        """The newest of what was logged in validation, and the evaluation's metrics without those of one subset."""
        logged = {name: v for name, (_, values) in self.curves.items() if name.startswith("val/") for v in values[-1:]}
        found = {
            name: Measured(task="val", metric=name.removeprefix("val/"), value=value)
            for name, value in {**logged, **self.status.metrics}.items()
            if name.startswith("val/")
        }
        return {**found, **{row.name: row for row in self.metrics if row.subset is None}}

    def value(self, name: str) -> float | None:
        if name == "val/loss" and name in self.status.metrics:  # without reading the log
            return self.status.metrics[name]
        return self.values[name].value if name in self.values else None

    def as_json(self) -> dict[str, Any]:
        """All of it but the configuration and the curves; None for numbers that JSON has no word for."""
        told = {
            "folder": str(self.folder),
            "name": self.name,
            "began": self.began,
            **self.status.model_dump(include={"state", "message", "stage", "step_s"}),
            "step": self.step,
            "steps": self.planned,
            "seconds": self.status.seconds,
            "parents": self.parents,
            "data": self.data,
            "commit": self.environment.commit,
            "joules": self.energy.joules if self.energy.how != "unknown" else None,
            "values": {name: row.model_dump(include={"value", "ci95", "n"}) for name, row in self.values.items()},
        }
        return _finite(told)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def find(root: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at or below `root`, and the outermost folders that hold something but no run."""
    found: list[Path] = []
    foreign: list[Path] = []

    def walk(folder: Path, depth: int) -> None:
        if _is_run(folder):
            found.append(folder)
            return
        runs, strangers = len(found), len(foreign)
        try:
            inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:  # not ours to read
            foreign.append(folder)
            return
        for child in (path for path in inside if path.is_dir() and depth < DEPTH):
            walk(child, depth + 1)
        if inside and len(found) == runs:
            foreign[strangers:] = [folder]

    if not root.is_dir():
        raise RunError(f"{root}: no such folder; name the one that your runs are in (paths.runs, by default runs)")
    walk(root, 0)
    if not found:
        raise RunError(f"{root}: no runs in it; start one with `mmfusion train`")
    return found, foreign


def _is_run(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in ("environment.json", "status.json")) or (
            (folder / "config.yaml").is_file() and not (folder / "model.safetensors").exists()
        )
    except OSError:
        return False


def read(folder: Path) -> Run:
    """Raises RunError if it is no run folder, or something in it is not as a run writes it."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; `mmfusion runs ls` lists those in runs")
    if not _is_run(folder):
        below = shlex.join(("mmfusion", "runs", "ls", str(folder)))
        raise RunError(f"{folder}: no run folder (it has no config.yaml); `{below}` looks below it")
    lineage, status = load(folder / "checkpoint" / "lineage.json", _Lineage), read_status(folder)
    config = _config(folder / "config.yaml")
    begun_from = [str(config["checkpoint"])] if config.get("checkpoint") else []
    return Run(
        folder=folder,
        config=config,
        status=status,
        environment=load(folder / "environment.json", Environment),
        metrics=load(folder / "metrics.json", _Metrics).root,
        parents=[parent.name for parent in lineage.parents] or begun_from,
        data=lineage.data.fingerprint or status.data,
        energy=energy.read(folder),
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        tree = plain_yaml(path)
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: not as a run writes it ({error})") from error
    if not isinstance(tree, dict):
        raise RunError(f"{path}: not as a run writes it (no mapping)")
    return {str(key): value for key, value in tree.items()}


def read_all(root: Path, *, logs: bool) -> tuple[list[Run], list[str]]:
    """Every run below `root`, newest first, and a line for each folder that is none or is damaged.

    `logs` reads every log for all of the values; else only those without which steps and loss are not known.
    """
    folders, foreign = find(root)
    found: list[Run] = []
    problems = [f"{folder}: no run in it" for folder in foreign]
    for folder in folders:
        try:
            run = read(folder)
            if logs or run.step == 0 or "val/loss" not in run.status.metrics:
                _ = run.values  # a damaged log is known here, where the run can be left out
            found.append(run)
        except RunError as error:
            problems.append(str(error))
    return sorted(found, key=lambda run: -(run.began or 0.0)), problems
