"""What a `_target_` names and what it takes: the constructor's signature is the schema."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mmfusion.config.problems import ConfigError, near

NODE_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")  # what Hydra itself reads in a node


def locate(target: object, key: str) -> Callable[..., Any]:
    """The class or function a `_target_` names; ConfigError in one line if there is none."""
    if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
        raise ConfigError([f"{key}._target_: must be a dotted name such as my_package.MyEncoder, not {target!r}"])
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:cut]).startswith(error.name):
                continue
            raise ConfigError([f"{key}._target_: importing {target} failed: {error}"]) from error
        for depth, part in enumerate(parts[cut:], cut):
            if not hasattr(found, part):
                where = ".".join(parts[:depth])
                raise ConfigError([f"{key}._target_: {where} has no {part!r}{near(part, dir(found))}"])
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError([f"{key}._target_: {target} is no class and no function"])
        return found
    raise ConfigError([f"{key}._target_: no module named {parts[0]!r}; install it, or put its folder on PYTHONPATH"])


def arguments_of(target: Callable[..., object]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that may be given by name, and whether any other name may be given too."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return {}, True
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def hints_of(target: Callable[..., object]) -> dict[str, Any]:
    """The resolved annotations of a callable; empty where one cannot be resolved (then names alone are checked)."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def name_of(target: Callable[..., object]) -> str:
    return getattr(target, "__qualname__", str(target))


def item_hint(hint: Any) -> Any:
    """What the values of a mapping or the items of a sequence must be."""
    for option in options(hint):
        if (origin := get_origin(option)) and inspect.isclass(origin) and issubclass(origin, (Mapping, Sequence)):
            return get_args(option)[-1] if get_args(option)[-1] is not ... else get_args(option)[0]
    return Any


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def bare(hint: Any) -> Any:
    """A hint without the `Annotated` around it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def options(hint: Any) -> Iterator[Any]:
    """The members of a union and of the unions in it, without the `Annotated` around them."""
    for member in members(bare(hint)):
        if member is hint:
            yield member
        else:
            yield from options(member)


def classes(hint: Any) -> tuple[type, ...]:
    """The classes a nested node may make: `X`, or what a `Callable[..., X]` returns; empty = anything."""
    found = []
    for option in options(hint):
        if get_origin(option) is Callable:
            found += classes(_returned(option))
        elif option is Any or not inspect.isclass(option) or getattr(option, "_is_protocol", False):
            return ()
        elif option is not type(None):
            found.append(option)
    return tuple(found)


def _returned(hint: Any) -> Any:
    """What a `Callable[..., X]` returns; a bare `Callable` says nothing of it."""
    return (get_args(hint) or (Any,))[-1]


def makes(target: Callable[..., object], expected: tuple[type, ...]) -> bool:
    """Whether a node of this target gives one of the expected classes (see `classes`)."""
    made = target if inspect.isclass(target) else hints_of(target).get("return")
    return not expected or (inspect.isclass(made) and issubclass(made, expected))


def takes_partial(option: Any) -> bool:
    """Whether a node is left for its receiver to call; a factory without arguments is made by `build_arguments`."""
    return get_origin(option) is Callable and get_args(option)[:1] != ([],)


def dataclass_in(hint: Any) -> type | None:
    return next((found for found in classes(hint) if dataclasses.is_dataclass(found)), None)


def described(hint: Any) -> str:
    """A type and its range in a few words: `int > 0`, `'indexed' or 'webdataset'`, `Limits`."""
    if get_origin(hint) is Annotated:
        inner, *limits = get_args(hint)
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}
        found = [(sign, getattr(limit, name, None)) for limit in limits for name, sign in signs.items()]
        told = " and ".join(f"{sign} {value}" for sign, value in found if value is not None)
        return f"{described(inner)} {told}".strip()
    if len(members(hint)) > 1:
        return " or ".join(described(member) for member in members(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in get_args(hint))
    if get_origin(hint) is Callable:
        return described(_returned(hint))
    if inner := get_args(hint):
        name = "mapping to" if issubclass(get_origin(hint), Mapping) else "list of"
        return f"{name} {described(item_hint(hint))}"
    if hint is Any or not hasattr(hint, "__name__"):
        return "anything"
    return "null" if hint is type(None) else hint.__name__


def as_json(value: object) -> str | None:
    """A value in one line, None where it is none that a configuration could hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        return None
