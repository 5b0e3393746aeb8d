"""Who set each value of a composed tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from mmfusion.config.composition import ROOT, conf_trees, hydra_over
from mmfusion.config.tree import leaves


def origins(arguments: Sequence[str], config_dir: Path | None = None) -> dict[str, str]:
    """What set each key last: `{"optim.lr": "conf/optim/adamw.yaml", "seed": "command line", …}`.

    Hydra says which files it merges, in which order and where into the tree; the last that holds a key has set it.
    """
    with hydra_over(arguments, config_dir) as overrides:
        loader = GlobalHydra.instance().config_loader()
        merged = loader.compute_defaults_list(ROOT, overrides, RunMode.RUN)
    found = {}
    trees = conf_trees(config_dir)
    for default in merged.defaults:
        for tree, name in trees.items():
            file = tree / f"{default.config_path}.yaml"
            if file.is_file():  # not so for Hydra's own
                content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
                keys = [key for key, _ in leaves(content, default.package or "")]
                found |= dict.fromkeys(keys, f"{name}/{default.config_path}.yaml")
                break
    for override in merged.config_overrides:
        found |= dict.fromkeys([key for key, _ in leaves(override.value(), override.key_or_group)], "command line")
    return found


def origin_of(key: str, found: Mapping[str, str]) -> str:
    """Who set a key, or the node above it that was set as a whole, by an interpolation for example."""
    while key not in found and "." in key:
        key = key.rpartition(".")[0]
    return found.get(key, "")
