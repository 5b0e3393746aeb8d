"""A composed tree: resolved, walked, printed without secrets, and the `_target_`s in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mmfusion.config.problems import ConfigError, one_line

# What names a secret: `hub_token` does, a model's `class_token` does not.
SECRET = re.compile(
    r"^(?!(?:.*_)?(?:class|cls|mask|pad|bos|eos|sep|unk|start|end|stop|special|image|audio|sensor|video|text)_token$)"
    r"(?:.*_)?(?:api_key|password|passwd|secret|token|access_key)$",
    re.IGNORECASE,
)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved tree as plain dicts and lists. Raises ConfigError for a missing value (`???`) or interpolation."""
    try:
        return _as_dict(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError([f"{error.full_key}: has no value yet; give {error.full_key}=VALUE"]) from error
    except InterpolationResolutionError as error:
        raise ConfigError([_not_there(str(error.full_key), interpolated(cfg)) or one_line(error)]) from error
    except OmegaConfBaseException as error:
        raise ConfigError([one_line(error)]) from error


def _not_there(key: str, interpolated: Mapping[str, str]) -> str:
    """What to say of a key whose source was left out, is null, or has no value."""
    if not (sources := ", ".join(sources_of(interpolated.get(key, "")))):
        return ""
    leave_out = f", or leave out what holds it: ~{key.rpartition('.')[0]}" if "." in key else ""
    return f"{key}: is taken from {sources}, which is not there; give {key} a value of its own{leave_out}"


def from_environment(text: str) -> str:
    """A text of a run folder with what the environment now gives for each `${oc.env:NAME}` that names no secret."""

    def given(found: re.Match[str]) -> str:
        return found[0] if SECRET.search(found[1]) else os.environ.get(found[1], found[0])

    return re.sub(r"\$\{oc\.env:(\w+)\}", given, text)


def raw(cfg: DictConfig) -> dict[str, Any]:
    """The tree as plain dicts and lists, interpolations as they are written."""
    return _as_dict(OmegaConf.to_container(cfg, resolve=False))


def leaves(tree: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """What is no mapping in a tree, nor an empty one, with its dotted key."""
    if isinstance(tree, Mapping) and tree:
        for name, item in tree.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    elif key:
        yield key, tree


def nodes(tree: object, key: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in a tree, those in lists too, with its dotted key."""
    if isinstance(tree, Mapping):
        yield key, tree
    for name, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ():
        yield from nodes(item, f"{key}.{name}" if key else str(name))


def interpolated(cfg: DictConfig) -> dict[str, str]:
    """The keys whose value is taken from another key, with what stands there: `${optim.lr}`."""
    return {key: value for key, value in leaves(raw(cfg)) if isinstance(value, str) and "${" in value}


def sources_of(interpolation: str) -> list[str]:
    """The names in an interpolation: `${data.root}/x` -> `data.root`, `${oc.env:HOME,/}` -> `oc.env:HOME`."""
    return re.findall(r"\$\{(oc\.env:\w+|[\w.]+)", interpolation)


def refuse_interpolations(tree: object, key: str = "", nothing: bool = False) -> None:
    """Raises ConfigError for `${…}` other than `${oc.env:NAME}`, which gives a text: others could make nodes unseen.

    With `nothing` not even that may stand there, and no key of Hydra's but `_target_` and `_partial_`.
    """
    if isinstance(tree, (Mapping, list)):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            below = f"{key}.{name}" if key else str(name)
            if nothing and str(name).startswith("_") and name not in ("_target_", "_partial_"):
                raise ConfigError([f"{below}: not allowed here; remove the line"])
            refuse_interpolations(name, below, nothing)
            refuse_interpolations(value, below, nothing)
    elif isinstance(tree, str) and "${" in (tree if nothing else re.sub(r"\$\{oc\.env:[^{}]*\}", "", tree)):
        raise ConfigError([f"{key}: {tree!r:.100} is not resolved; a run folder holds plain values and ${{oc.env:…}}"])


def targets(tree: Any) -> Iterator[tuple[str, object]]:
    """Every `_target_` of a tree with its key."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == "_target_":
                yield "_target_", value
            else:
                yield from ((f"{name}.{key}", target) for key, target in targets(value))
    elif isinstance(tree, (list, tuple, set)):
        for index, value in enumerate(tree):
            yield from ((f"{index}.{key}", target) for key, target in targets(value))


def targets_in(trees: Sequence[Path]) -> set[str]:
    """Every `_target_` that the files of configuration trees name: what whoever keeps the trees trusts."""
    found: set[str] = set()
    for tree in trees:
        for file in tree.rglob("*.yaml"):
            try:
                content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
                continue  # what cannot be read trusts nothing
            found |= {str(target) for _, target in targets(content)}
    return found


def printable(cfg: DictConfig) -> dict[str, Any]:
    """The resolved tree without secrets: what the environment gave, also through another key, stays `${oc.env:NAME}`.

    Where it gave nothing, the default stands there, which is the configuration's own. Values of keys that name a secret
    (`api_key`, `password`, `token`, not `num_memory_tokens`) become `***`.
    """
    from omegaconf.resolvers import oc

    def named(name: str, *default: Any) -> str | None:
        hidden = not default or name in os.environ or SECRET.search(name)
        return f"${{oc.env:{name}}}" if hidden else oc.env(name, *default)

    OmegaConf.register_new_resolver("oc.env", named, replace=True)
    try:
        OmegaConf.clear_cache(cfg)
        tree = _as_dict(OmegaConf.to_container(cfg, resolve=True))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.clear_cache(cfg)

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: "***" if SECRET.search(str(k)) and isinstance(v, str) and v and "${" not in v else hide(v)
                for k, v in value.items()
            }
        return [hide(item) for item in value] if isinstance(value, list) else value

    return hide(tree)


def private(cfg: DictConfig) -> list[str]:
    """The keys of what is for this machine only: secrets, and what the environment gave, also through another key."""
    return [
        f"{above}.{name}"
        for above, node in nodes(printable(cfg))
        for name, value in node.items()
        if value == "***" or ("${oc.env" in str(value) and not isinstance(value, Mapping))
    ]


def _as_dict(tree: object) -> dict[str, Any]:
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}
