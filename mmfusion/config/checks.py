"""A resolved tree against the signatures that it names.

`check` walks the composed tree; for its root and every node with a `_target_`, names, types and `Annotated` ranges are
read from the signature and checked by pydantic, in strict mode: "2" is no int, True is no int, NaN is no float.
Nothing is written twice and a user's own class is checked like ours.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from mmfusion.config.problems import ConfigError, near
from mmfusion.config.signatures import (
    NODE_KEYS,
    arguments_of,
    classes,
    dataclass_in,
    hints_of,
    item_hint,
    locate,
    makes,
    name_of,
    options,
    takes_partial,
)

_NODE = "must be a node with a _target_"
# Words of JSON that a command line writes in another way.
_WRITTEN = {"a valid array": "a list such as [a, b]", "a valid object": "a mapping such as {a: 1}"}


def check(
    tree: Mapping[str, Any], schema: Callable[..., object], derived: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """Check a resolved tree against the signature of `schema`, every node in it against its own; else ConfigError.

    A problem at a `derived` key (see `interpolated`) is told only where its source has none, and names the source.
    """
    problems = list(_check_call(tree, schema, ""))
    told = [problem for problem in problems if problem.split(":")[0] not in derived]
    if not told:
        told = [f"{key} ({derived[key]}):{rest}" for key, _, rest in (p.partition(":") for p in problems)]
    if told:
        raise ConfigError(told)


def _check_call(node: Mapping[str, Any], target: Callable[..., object], key: str) -> Iterator[str]:
    named, open_ended = arguments_of(target)
    hints = hints_of(target)
    for name, value in node.items():
        path = f"{key}.{name}" if key else str(name)
        if name in NODE_KEYS:
            continue
        if name in named:
            yield from _check_value(value, hints.get(name, Any), path)
        elif not open_ended:
            yield f"{path}: {name_of(target)} has no such argument{near(str(name), named)}"
    if not node.get("_partial_"):
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in node:
                yield f"{key + '.' if key else ''}{name}: missing; {name_of(target)} needs it"


def _check_value(value: Any, hint: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" in value:
        try:
            target = locate(value["_target_"], path)
        except ConfigError as error:
            yield from error.problems
            return
        expected = classes(hint)
        if not makes(target, expected):
            yield f"{path}._target_: {value['_target_']} is no {' or '.join(c.__name__ for c in expected)}"
        partial_or_made = {takes_partial(option) for option in options(hint) if option is not type(None)}
        if expected and bool(value.get("_partial_")) not in partial_or_made:
            yield f"{path}._partial_: must be {str(partial_or_made.pop()).lower()} here"
        yield from _check_call(value, target, path)
    elif isinstance(value, Mapping) and (group := dataclass_in(hint)):
        yield f"{path}: must be a node: add `_target_: {group.__module__}.{group.__qualname__}`"
    elif _has_node(value):
        inner = item_hint(hint)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _check_value(item, inner, f"{path}.{name}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path}: must be a finite number, not {value!r}"
    else:
        yield from _check_plain(value, hint, path)


def _check_plain(value: Any, hint: Any, path: str) -> Iterator[str]:
    try:
        plain = json.dumps(value)
    except (TypeError, ValueError):
        yield f"{path}: must be a plain value, not {value!r:.60}"
        return
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
        adapter.validate_json(plain, strict=True)
    except ValidationError as error:
        yield f"{path}: {_reason(error)}, not {value!r}{_slip(value, error, path)}"
    except SchemaError:  # a class of ours that pydantic cannot read, and a value that is no node
        yield f"{path}: {_NODE}, not {value!r}{_way_out(value, path)}"
    except (PydanticUserError, TypeError, NameError, ValueError):
        return  # a type that pydantic cannot read, such as another library's: only the name could be checked


def _way_out(value: object, path: str) -> str:
    return f"; to leave it out: ~{path}" if value is None else ""


def _slip(value: object, error: ValidationError, path: str) -> str:
    """What a command line may have made of what was meant."""
    if value == "":
        return " (nothing stands after the =)"
    if _reason(error) == _NODE:
        return _way_out(value, path)
    listed = any(detail["type"] in ("list_type", "tuple_type") for detail in error.errors())
    return "; write it without quotes" if listed and isinstance(value, str) and value.startswith("[") else ""


def _reason(error: ValidationError) -> str:
    """What pydantic found, in one line, a union's members joined by "or"; `[0]` says which item of a list."""
    readable = [detail for detail in error.errors() if detail["type"] != "needs_python_object"]
    if not readable:
        return _NODE
    reasons = []
    for detail in readable:
        item = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
        reason = item + re.sub(r"^(Input|String|Value) should", " must" if item else "must", detail["msg"])
        for said, written in _WRITTEN.items():
            reason = reason.replace(said, written)
        if reason not in reasons:
            reasons.append(reason)
    return " or ".join(reasons)


def _has_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_has_node(item) for item in value.values())
    return isinstance(value, list) and any(_has_node(item) for item in value)
