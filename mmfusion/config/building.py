"""A checked tree becomes objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, get_args, get_origin

from hydra.utils import instantiate

from mmfusion.config.problems import ConfigError
from mmfusion.config.signatures import hints_of, item_hint, locate, options
from mmfusion.config.tree import refuse_interpolations, targets


def build(tree: Any, allow: Collection[str] | None = None) -> Any:
    """Instantiate every `_target_` of a resolved tree, inner nodes first.

    With `allow`, the exact set of names that may be built (a checkpoint's configuration is not trusted): anything else
    raises ConfigError before a module is imported.
    """
    if allow is not None:
        for key, target in targets(tree):
            if not isinstance(target, str) or target not in allow:
                raise ConfigError(
                    [f"{key}: {target!r} is not built from a checkpoint; if you trust it: --allow {target}"]
                )
        refuse_interpolations(tree, nothing=True)
        for key, target in targets(tree):
            locate(target, key.removesuffix("._target_"))
    return instantiate(tree, _convert_="all") if isinstance(tree, (dict, list)) else tree


def build_arguments(tree: Mapping[str, Any], schema: Callable[..., object]) -> dict[str, Any]:
    """The keyword arguments of `schema` from a checked tree.

    What is annotated `Callable[[], X]` becomes a factory, to be built later and again; all the rest is built now.
    """
    hints = hints_of(schema)
    return {name: _argument(value, hints.get(name, Any)) for name, value in tree.items()}


def _argument(value: Any, hint: Any) -> Any:
    for option in options(hint):
        if get_origin(option) is Callable and not get_args(option)[0]:
            return partial(build, value)
    if isinstance(value, Mapping) and "_target_" not in value and (inner := item_hint(hint)) is not Any:
        return {name: _argument(item, inner) for name, item in value.items()}
    return build(value)
