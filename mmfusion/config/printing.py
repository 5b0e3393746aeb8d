"""A composed tree as YAML, with where each value came from in a column of comments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from mmfusion.config.origins import origin_of
from mmfusion.config.problems import ConfigError, near
from mmfusion.config.signatures import arguments_of, as_json, described, hints_of, locate
from mmfusion.config.tree import sources_of

WIDEST = 64  # columns before the comments; a longer line pushes its own aside


def commented(
    tree: Mapping[str, Any],
    found: Mapping[str, str],
    interpolated: Mapping[str, str],
    *,
    root: Callable[..., object] | None = None,
    key: str = "",
) -> str:
    """The printable tree, or its part under `key`, as YAML that reads back as the same, with comments.

    Args:
        found: who set each key (see `origins`).
        interpolated: what stands at keys whose value is taken from another; the comment names that one.
        root: the signature of the whole tree, to show every argument's type too, and as lines that are comments those
            that keep the default of their signature.
    """

    def note(key: str) -> str:
        taken = "".join(f" ← {source}" for source in sources_of(interpolated.get(key, "")))
        return (origin_of(key, found) + taken).strip()

    part = _part(tree, key)
    if isinstance(part, Mapping):
        lines = list(_lines(part, key, note, root))
    else:
        above, _, name = key.rpartition(".")
        lines = list(_lines({name: part}, above, note, None))
    column = max((len(line) for line, comment in lines if comment and len(line) <= WIDEST), default=0)
    return "".join(f"{line:{column}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines)


def _part(tree: Mapping[str, Any], key: str) -> Any:
    part: Any = tree
    for name in key.split(".") if key else ():
        if not isinstance(part, Mapping) or name not in part:
            known = part if isinstance(part, Mapping) else ()
            raise ConfigError([f"--key {key}: there is no {name!r}{near(name, known)}"])
        part = part[name]
    return part


def _lines(
    node: Mapping[str, Any], key: str, note: Callable[[str], str], root: Callable[..., object] | None
) -> Iterator[tuple[str, str]]:
    """Each line of a node's YAML and its comment."""
    target = locate(node["_target_"], key) if root and "_target_" in node else root if root and not key else None
    types = {name: described(hint) for name, hint in hints_of(target).items()} if target else {}
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, Mapping) and value:
            yield _yaml(name, {})[0].removesuffix(" {}"), ""
            yield from ((f"  {line}", comment) for line, comment in _lines(value, path, note, root))
        else:
            comment = " : ".join(filter(None, (note(path), types.get(name))))
            lines = _yaml(name, value)
            told = 0 if isinstance(value, list) else len(lines) - 1  # within a text a comment would be text
            yield from ((line, comment if i == told else "") for i, line in enumerate(lines))
    for name, parameter in arguments_of(target)[0].items() if target else ():
        if name not in node and parameter.default is not inspect.Parameter.empty:
            default = as_json(parameter.default) or "…"
            yield f"# {name}: {default}", " : ".join(filter(None, ("signature", types.get(name))))


def _yaml(name: str, value: Any) -> list[str]:
    return OmegaConf.to_yaml(OmegaConf.create({name: value})).removesuffix("\n").split("\n")
