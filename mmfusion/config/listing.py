"""What can be chosen: the groups of the configuration trees, their options, and what each is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from mmfusion.config.composition import ROOT, conf_trees, hydra_over
from mmfusion.config.overrides import groups
from mmfusion.config.problems import ConfigError, near


@dataclass(frozen=True)
class Option:
    """One file of a group.

    `about` is the first line of the comment at its top; `needs` what a line of it says after `needs:`, such as `gpu`;
    `default` whether it is chosen without asking; `tree` the name of the configuration tree it is in.
    """

    group: str
    name: str
    about: str
    needs: str
    default: bool
    tree: str


def listing(group: str | None = None, config_dir: Path | None = None) -> list[Option]:
    """Every option of every group, or of one and those below it. Raises ConfigError for a group that is not there."""
    trees = conf_trees(config_dir)
    known = groups(list(trees))
    if group is not None and group not in known:
        raise ConfigError([f"--list {group}: no such group{near(group, known)}; there are: {', '.join(known)}"])
    chosen = _chosen()
    found = []
    for name, options in known.items():
        if group is None or name == group or name.startswith(f"{group}/"):
            for option in options:
                tree = next(tree for tree in trees if (tree / name / f"{option}.yaml").is_file())
                about, needs = _comment(tree / name / f"{option}.yaml")
                found.append(Option(name, option, about, needs, f"{name}/{option}" in chosen, trees[tree]))
    return found


def _comment(file: Path) -> tuple[str, str]:
    """What the comment at the top of a file says of it, and what it needs; `# @package` is for Hydra."""
    top = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    lines = [text for line in top if not (text := line[1:].strip()).startswith("@")]
    needs = [line.removeprefix("needs:").strip() for line in lines if line.startswith("needs:")]
    return next((line for line in lines if not line.startswith("needs:")), ""), ", ".join(needs)


def _chosen() -> set[str]:
    """The files that the root chooses, and those that these choose in other groups; in their own, they build on one."""
    with hydra_over([], None) as overrides:
        merged = GlobalHydra.instance().config_loader().compute_defaults_list(ROOT, overrides, RunMode.RUN)
    return {
        default.config_path
        for default in merged.defaults
        if default.config_path and Path(default.config_path).parent != Path(default.parent or "").parent
    }
