"""`resume=RUN`: the configuration of a run that goes on, and what in it needs trust."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmfusion import checkpoint, config
from mmfusion.config import ConfigError

# What may change when a run goes on: nothing that decides which samples are met or what is done with them. (The number
# of workers decides that of threads, which may sum in another order: the same batches, not always the same bits.)
RUN_ONLY = (
    *(f"trainer.{name}" for name in ("log_every_n_steps", "enable_progress_bar", "profiler")),
    *("callbacks", "logger", "data.workers", "data.cache_mb"),
)
PLACES = ("dirpath", "save_dir", "root_dir", "log_dir", "dir")  # where callbacks, loggers and profilers write
NAMES = ("name", "version", "sub_dir", "filename", "filename_suffix")  # and what they call it there
# Packages whose own classes a run folder may name, beside what our configuration files and checkpoints do; of loggers
# only those: others may send what they are told.
FAMILIES = ("torch.optim.", "lightning.pytorch.callbacks.", "lightning.pytorch.profilers.")
SENDING = "lightning.pytorch.loggers.WandbLogger"  # unless it is told not to
# Settings of its that send nothing: those of our own file.
QUIET = ("x_disable_meta", "x_disable_stats", "disable_git", "save_code", "console", "silent")


def split_resume(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """`resume=RUN` is a file name and not in Hydra's grammar: it is taken out before Hydra sees the rest."""
    given = [o.removeprefix("resume=") for o in overrides if o.startswith("resume=")]
    return (Path(given[-1]) if given else None), [o for o in overrides if not o.startswith("resume=")]


def resumed(run: Path, overrides: Sequence[str], allow: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run that goes on: its own, with nothing changed that a result depends on.

    A run folder may come from anywhere: classes that are not `ours` are built only if `allow` names them.
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
    trusted = ours(moved)
    for key, target in config.targets(moved):
        if target not in allow and target not in trusted:
            problem = f"{target!r} is not built from a run folder; if it is yours and you trust it: --allow {target}"
            raise ConfigError([f"{run / 'config.yaml'}: {key}: {problem}"])
    _check_places(moved, run, {override.split("=")[0] for override in overrides})
    try:
        tree = OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides)), {"resume": str(run)})
    except Exception as error:  # YAML's errors and OmegaConf's
        raise ConfigError(
            [f"{' '.join(overrides)}: not of the form key=value ({str(error).splitlines()[0]})"]
        ) from error
    assert isinstance(tree, DictConfig)
    for above, node in config.nodes(config.raw(tree)):
        if lost := [name for name, value in node.items() if value == "***"]:
            problem = "was not kept, as its name is that of a secret; write it there, best as ${oc.env:NAME}"
            raise ConfigError([f"{run / 'config.yaml'}: {above}.{lost[0]} {problem}"])
    return tree


def _check_places(tree: dict[str, Any], run: Path, given: Collection[str]) -> None:
    """Nothing of a run folder writes outside it, and no logger sends anything, unless that is `given` once more."""
    for group in ("callbacks", "logger", "trainer"):
        for path, node in config.nodes(tree.get(group), group):
            if node.get("_target_") == SENDING:
                _check_offline(path, node, given)
            for key, value in node.items():
                place = f"{path}.{key}"
                if place in given or not isinstance(value, str):
                    continue
                if (key in PLACES and not _inside(value, run)) or (key in NAMES and not _inside(run / value, run)):
                    remedy = f"if you want that: {place}={value}"
                    raise ConfigError([f"{place}: {value} lies outside the run folder; {remedy}"])


def _check_offline(path: str, node: Mapping[str, Any], given: Collection[str]) -> None:
    """A logger that can send is told not to, and nothing else in its node can tell it otherwise."""
    offline = f"{path}.offline"
    if not node.get("offline") and offline not in given:
        raise ConfigError([f"{offline}: this run sends its log away; if you want that again: {offline}=false"])
    settings = node.get("settings") or {}
    if isinstance(settings, Mapping):
        others = {f"{path}.settings.{name}": value for name, value in settings.items() if name not in QUIET}
    else:
        others = {f"{path}.settings": settings}
    if node.get("mode") not in (None, "offline", "disabled"):
        others[f"{path}.mode"] = node["mode"]
    for key, value in others.items():
        if key not in given:
            raise ConfigError([f"{key}: may send this run's log away; if you want that again: {key}={value}"])


def _inside(place: str | Path, run: Path) -> bool:
    """Whether it lies in the run folder, also for loggers that put variables and `~` in a path."""
    below = str(place).removeprefix(str(run))
    return "$" not in below and below[:1] != "~" and Path(place).resolve().is_relative_to(run.resolve())


def ours(tree: object) -> set[str]:
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
