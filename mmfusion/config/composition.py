"""Hydra over our configuration tree and the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mmfusion.config.overrides import as_overrides, groups
from mmfusion.config.problems import ConfigError, one_line

ROOT = "train"


def conf_dir() -> Path:
    """The configuration tree: `$MMFUSION_CONF` if set, else the one in the wheel, else the repository's."""
    if chosen := os.environ.get("MMFUSION_CONF"):
        return Path(chosen).resolve()
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def conf_trees(config_dir: Path | None) -> dict[Path, str]:
    """Our configuration tree and the user's, with the name that each is told by. Raises ConfigError for none there."""
    trees = {conf_dir(): conf_dir().name}
    if config_dir:
        trees[config_dir.resolve()] = str(config_dir)
    for tree in trees:
        if not tree.is_dir():
            raise ConfigError([f"configuration in {tree}: no such folder"])
        if not groups([tree]):
            raise ConfigError([f"configuration in {tree}: holds no GROUP/NAME.yaml, such as experiment/mine.yaml"])
    return trees


def compose(arguments: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The composed tree of `conf/train.yaml` under the overrides. Raises ConfigError in one line, whatever is wrong."""
    with hydra_over(arguments, config_dir) as overrides:
        return hydra_compose(ROOT, overrides=overrides)


@contextmanager
def hydra_over(arguments: Sequence[str], config_dir: Path | None) -> Iterator[list[str]]:
    """Hydra, set up over our tree and the user's: the overrides as it takes them."""
    trees = list(conf_trees(config_dir))
    overrides = as_overrides(arguments, trees)
    if config_dir:
        overrides.append(f'hydra.searchpath=["file://{trees[-1]}"]')
    with told_in_one_line(trees), initialize_config_dir(str(trees[0]), version_base="1.3"):
        yield overrides


@contextmanager
def told_in_one_line(trees: Sequence[Path] = ()) -> Iterator[None]:
    """What Hydra and the files that it reads raise becomes a ConfigError of one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        files = [str(file) for tree in trees for file in tree.rglob("*.yaml") if not _is_text(file)]
        raise ConfigError([f"{', '.join(files)}: not text in UTF-8 ({error.reason})"]) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError([one_line(error)]) from error


def _is_text(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True
