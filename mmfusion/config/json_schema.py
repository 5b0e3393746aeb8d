"""A JSON schema (draft 2020-12) of the configuration for editors: the signatures, as `check` reads them.

It knows each file alone, not what others bring: nothing is required in it, and an interpolation may stand anywhere.
What is missing and what interpolations give is for `mmfusion config --check`.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from mmfusion.config.problems import ConfigError
from mmfusion.config.signatures import NODE_KEYS, arguments_of, as_json, bare, classes, hints_of, locate, makes, members
from mmfusion.config.tree import targets_in

Schema = dict[str, Any]
_LATER: Schema = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
_NODE_KEYS: Schema = {"_target_": {"type": "string", "pattern": r"^\w+(\.\w+)+$"}} | {
    name: {"type": "string" if name == "_convert_" else "boolean"} for name in NODE_KEYS[1:]
}


def json_schema(root: Callable[..., object], trees: Sequence[Path]) -> Schema:
    """The schema of a whole configuration (`root` is its signature) and of each file of the groups of `trees`.

    Every class that a file of the trees names is in it, ours and the user's; one that cannot be imported is left open.
    """
    known: dict[str, Callable[..., object]] = {}
    definitions: Schema = {"later": _LATER}
    for target in sorted(targets_in(trees)):
        try:
            known[target] = locate(target, target)
        except ConfigError as error:
            definitions[target] = {"description": str(error)}
    definitions |= {target: _call(made, known) for target, made in known.items()}
    chosen = [
        {"if": {"properties": {"_target_": {"const": target}}}, "then": {"$ref": f"#/$defs/{target}"}}
        for target in sorted(definitions.keys() - {"later"})
    ]
    node = {"type": "object", "required": ["_target_"], "properties": _NODE_KEYS, "allOf": chosen}
    definitions |= {"root": _call(root, known), "node": node, "foreign": {"not": {"enum": list(known)}}}
    definitions["root"]["properties"]["hydra"] = {"type": "object"}
    places = [definitions["root"]["properties"][name] for name in arguments_of(root)[0]]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mmfusion configuration",
        "if": {"required": ["_target_"]},
        "then": {"$ref": "#/$defs/node"},
        "else": _file(places, list(arguments_of(root)[0])),
        "$defs": definitions,
    }
    return _ordered(schema)


def _ordered(part: Any) -> Any:
    """Members of unions in one order: Python gives that in which the first of equal unions was written."""
    if isinstance(part, dict):
        ordered = {key: _ordered(value) for key, value in part.items()}
        if isinstance(choices := ordered.get("anyOf"), list):
            ordered["anyOf"] = sorted(choices, key=lambda choice: json.dumps(choice, sort_keys=True))
        return ordered
    return [_ordered(item) for item in part] if isinstance(part, list) else part


def _file(places: Sequence[Schema], keys: Sequence[str]) -> Schema:
    """A file that is no node: the whole, part of a node, or a group's nodes by name, be it a name of the root's."""
    nodes = [place for place in places if _holds(place, "then")]
    named = {"anyOf": [place for place in places if _holds(place, "propertyNames")]}
    whole_nodes = {"additionalProperties": {"required": ["_target_"]}}
    return {
        "if": {"anyOf": [{"required": [key]} for key in keys]},
        "then": {"anyOf": [{"$ref": "#/$defs/root"}, *nodes, {"allOf": [named, whole_nodes]}]},
        "else": {"anyOf": [*nodes, named]},
    }


def _call(target: Callable[..., object], known: Mapping[str, Callable[..., object]]) -> Schema:
    """The arguments of a class or function: what a node of it may hold."""
    named, open_ended = arguments_of(target)
    hints = hints_of(target)
    text = inspect.getdoc(target) or ""
    properties: Schema = {"defaults": {"type": "array"}, **_NODE_KEYS}
    for name, parameter in named.items():
        properties[name] = _place(hints.get(name, Any), known)
        if sentence := re.search(rf"[^.\n]*`{name}`[^.\n]*\.?", text):
            properties[name]["description"] = sentence.group().strip()
        if parameter.default is not parameter.empty and as_json(parameter.default):
            properties[name]["default"] = parameter.default
    return {
        "type": "object",
        "description": text.partition("\n\n")[0],
        "properties": properties,
        "additionalProperties": open_ended,
    }


def _place(hint: Any, known: Mapping[str, Callable[..., object]]) -> Schema:
    """What may stand where a parameter is annotated `hint`: plain values, nodes, an interpolation."""
    if Any in (found := [bare(member) for member in members(bare(hint))]):
        return {}
    choices = [_option(option, known) for option in (members(hint) if len(found) > 1 else [hint])]
    return {} if {} in choices else {"anyOf": [*choices, {"$ref": "#/$defs/later"}]}


def _option(hint: Any, known: Mapping[str, Callable[..., object]]) -> Schema:
    option = bare(hint)
    origin = get_origin(option)
    if origin is Callable or (inspect.isclass(option) and option.__module__ != "builtins" and origin is None):
        return _node(option, known)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        key, value = get_args(option)
        return {
            "type": "object",
            "propertyNames": {"anyOf": [_plain(key), {"const": "defaults"}]},
            "properties": {"defaults": {"type": "array"}},
            "additionalProperties": _place(value, known),
        }
    if inspect.isclass(origin) and issubclass(origin, Sequence) and origin is not tuple:
        return {"type": "array"} | _plain(hint) | {"items": _place(get_args(option)[0], known)}
    return _plain(hint)


def _node(hint: Any, known: Mapping[str, Callable[..., object]]) -> Schema:
    """A node of a class that fits or is not known here; without `_target_`, part of one that another file begins."""
    fitting = [target for target, made in known.items() if makes(made, classes(hint))]
    fits = {"properties": {"_target_": {"anyOf": [{"enum": fitting}, {"$ref": "#/$defs/foreign"}]}}}
    partly = {"anyOf": [{"$ref": f"#/$defs/{target}"} for target in fitting]} if fitting else {}
    node = {"allOf": [{"$ref": "#/$defs/node"}, fits]}
    return {"type": "object", "if": {"required": ["_target_"]}, "then": node, "else": partly}


def _plain(hint: Any) -> Schema:
    """pydantic's schema of a type without nodes; an open one for what it cannot read."""
    try:
        made = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    except (PydanticUserError, SchemaError, TypeError, NameError, ValueError):
        return {}
    return {} if "$defs" in made else made


def _holds(place: Schema, word: str) -> bool:
    return any(word in choice for choice in place.get("anyOf", ()))
