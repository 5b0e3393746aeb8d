"""The best trial as an `experiment` file that gives its values, and the command that trains with it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from mmfusion import config, runs
from mmfusion.config import ConfigError
from mmfusion.config.composition import hydra_over
from mmfusion.sweep.result import Result, Tried
from mmfusion.sweep.space import key_of, short

LATE = ("stage", "debug")  # groups that stand behind the experiment, which cannot choose in them
# Of a run, not of its recipe: may differ between the winner's trial and what its file composes to.
OWN = ("name", "paths")


def write(found: Result, config_dir: Path | None = None) -> tuple[Path, str]:
    """Write `FOLDER/conf/experiment/NAME-best.yaml`: the file, and the command that trains with it.

    What a file of an experiment cannot say (`~key`, or what a `stage` says behind it) stands in the command. Raises
    ConfigError if the two together would not give the winner's configuration: that is a fault of ours.
    """
    best = found.best
    assert best is not None
    name = f"{found.name}-best"
    file = found.folder / "conf" / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    given = found.sweep.kept(best.values)
    text = _text(found, best, name, given, config_dir)
    with tempfile.TemporaryDirectory() as scratch:  # both trees as one, to see what they give
        tree = Path(scratch) / "conf"
        if config_dir:
            _copy_yaml(config_dir, tree)
        (tree / "experiment").mkdir(parents=True, exist_ok=True)
        (tree / "experiment" / file.name).write_text(text, encoding="utf-8")
        behind = _behind(name, given, tree, config_dir)
    command = ["mmfusion", "train", "--config-dir", str(config_dir or file.parent.parent), f"experiment={name}"]
    told = shlex.join([*command, *behind])
    if config_dir:
        there = str(config_dir / "experiment")
        told = " && ".join([shlex.join(["mkdir", "-p", there]), shlex.join(["cp", str(file), there]), told])
    runs.write(file, text.replace("COMMAND", told))
    return file, told


def _copy_yaml(theirs: Path, to: Path) -> None:
    """What Hydra reads of a folder, which may hold much else."""
    for file in theirs.rglob("*.yaml"):
        if file.is_file():
            copy = to / file.relative_to(theirs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _text(found: Result, best: Tried, name: str, given: Sequence[str], config_dir: Path | None) -> str:
    defaults, tree = _as_file(given, _base(given, config_dir), config_dir)
    tree = {"name": name, **tree}
    spread = "one seed" if best.sd is None else f"sd {best.sd:.3g} over {best.n} seeds"
    done = sum(one.state == "done" for one in found.tried)
    lines = [
        "# @package _global_",
        f"# What `mmfusion sweep {found.name}` found: {', '.join(f'{k} {short(v)}' for k, v in best.values.items())}.",
        "# Command:  COMMAND",
        f"# Judged:   {found.sweep.metric} {best.value:.4g} ({spread}), trial {best.number}; the best of the",
        f"#           {done} of {len(found.tried)} that were done, so a little too good. No test split was seen.",
    ]
    if short_runs := found.sweep.only_in_trials:
        lines.append(f"#           Trials had {shlex.join(short_runs)}.")
    body = yaml.dump({"defaults": defaults}, sort_keys=False, allow_unicode=True, default_flow_style=False)
    body += yaml.dump(tree, sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, body])


def _as_file(given: Sequence[str], base: Sequence[str], config_dir: Path | None) -> tuple[list[Any], dict[str, Any]]:
    """Overrides as the defaults list and the tree of a file."""
    groups = config.groups(list(config.conf_trees(config_dir)))
    defaults: list[Any] = [*base]
    tree: dict[str, Any] = {}
    for one in _parsed(given):
        key = one.key_or_group
        if one.is_delete() or key in ("experiment", *LATE):
            continue
        if key in groups:
            package = f"@{one.package}" if one.package else ""
            defaults.append({f"override /{key}{package}": one.value()})
            continue
        node = tree
        *above, last = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = _plain(one.value())
    return [*defaults, "_self_"], tree


def _base(given: Sequence[str], config_dir: Path | None) -> list[str]:
    """The experiment that the trials had, on which the winner's builds."""
    with hydra_over(given, config_dir) as overrides:
        chosen = hydra_compose(config.ROOT, overrides=overrides, return_hydra_config=True).hydra.runtime.choices
    there = chosen.get("experiment")
    return [there] if isinstance(there, str) else list(there or [])


def _behind(name: str, given: Sequence[str], tree: Path, config_dir: Path | None) -> list[str]:
    """The overrides that the file alone does not give: what is left out, and what is set behind an experiment."""
    behind = [one for one in given if one.startswith("~") or key_of(one) in LATE]
    groups = config.groups([tree, *config.conf_trees(config_dir)])
    values = [one for one in given if one not in behind and key_of(one) not in groups]
    expected = dict(_leaves(given, config_dir))

    def missing(more: Sequence[str]) -> list[str]:
        got = dict(_leaves([f"experiment={name}", *behind, *more], tree))
        return [key for key in {**expected, **got} if got.get(key, got) != expected.get(key, expected)]

    differ = missing([])
    behind += [one for one in values if any(f"{key}.".startswith(f"{key_of(one)}.") for key in differ)]
    if still := missing([]):
        raise ConfigError([f"{still[0]}: an experiment file does not give it as the trial had it"])
    return behind


def _leaves(given: Sequence[str], config_dir: Path | None) -> Iterator[tuple[str, Any]]:
    """The composed tree by key, as it is written, without what is of a run alone."""
    for key, value in config.leaves(config.raw(config.compose(given, config_dir))):
        if key.partition(".")[0] not in OWN:
            yield key, value


def _parsed(given: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(given))


def _plain(value: Any) -> Any:
    """Hydra's quoted texts inside lists and mappings as texts."""
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return getattr(value, "text", value)
