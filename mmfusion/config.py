"""Configuration: compose (Hydra), check (against constructor signatures), build. The only file that knows `_target_`.

The constructor's signature is the schema. `check` walks the composed tree; for its root and every node with a
`_target_`, names, types and `Annotated` ranges are read from the signature and checked by pydantic, in strict mode: "2"
is no int, True is no int, NaN is no float. Nothing is written twice and a user's own class is checked like ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from mmfusion.errors import UserError

ROOT = "train"
SECRET = re.compile(r"(^|_)(api_key|password|passwd|secret|token|access_key)$", re.IGNORECASE)
_HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_"}


class ConfigError(UserError):
    """A configuration that cannot be used; each problem is one line with the key, the reason and the remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


# -------------------------------------------------------------------------------------------------------------- compose


def conf_dir() -> Path:
    """The configuration tree: `$MMFUSION_CONF` if set, else the one in the wheel, else the repository's."""
    if chosen := os.environ.get("MMFUSION_CONF"):
        return Path(chosen).resolve()
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "conf"


def groups(config_dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Every configuration group and its options over the given trees: `{"model/image": ["naflex"], …}`."""
    found: dict[str, set[str]] = {}
    for tree in config_dirs:
        for path in tree.rglob("*.yaml"):
            parent = path.parent.relative_to(tree).as_posix()
            if parent != ".":
                found.setdefault(parent, set()).add(path.stem)
                for above in path.parent.relative_to(tree).parents:
                    if above.as_posix() != ".":
                        found.setdefault(above.as_posix(), set())
    return {name: sorted(options) for name, options in sorted(found.items())}


def as_overrides(arguments: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The command line as Hydra takes it: `a.b=c` becomes `++a.b=c`, to set keys that only a signature knows.

    The choice of a group's option (`model=tiny`) stays as it is; an option that does not exist raises ConfigError here,
    with the near match. Whether `a.b` exists at all is for `check` to say.
    """
    known = groups(config_dirs)
    result = []
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError([f"{argument}: no such option; see `mmfusion train --help`"])
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                [f"{argument}: not of the form key=value ({reason}); quote text: 'key=\"a, b\"'"]
            ) from error
        name = override.key_or_group
        if name in known:
            options = known[name]
            choice = override.value()
            if isinstance(choice, str) and options and choice not in options:
                raise ConfigError(
                    [f"{name}={choice}: no such option{near(choice, options)}; there are: {', '.join(options)}"]
                )
        elif not argument.startswith(("+", "~")) and not name.startswith("hydra."):
            argument = "++" + argument
        result.append(argument)
    return result


def compose(arguments: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The composed tree of `conf/train.yaml` under the overrides. Raises ConfigError in one line, whatever is wrong."""
    trees = [conf_dir(), *([config_dir.resolve()] if config_dir else [])]
    for tree in trees:
        if not tree.is_dir():
            raise ConfigError([f"--config-dir {tree}: no such folder"])
    overrides = as_overrides(arguments, trees)
    if config_dir:
        overrides.append(f'hydra.searchpath=["file://{trees[-1]}"]')
    try:
        with initialize_config_dir(str(trees[0]), version_base="1.3"):
            return hydra_compose(ROOT, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([" ".join(str(error).split())]) from error
    except ValueError as error:  # Hydra's own, which names no key
        raise ConfigError(
            [f"a group is set to no name ({error}); give GROUP=NAME, or ~GROUP to leave it out"]
        ) from error


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved tree as plain dicts and lists. Raises ConfigError for a missing value (`???`) or interpolation."""
    try:
        return _as_dict(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise ConfigError([f"{key}: {str(error).splitlines()[0]}"]) from error


def interpolated(cfg: DictConfig) -> dict[str, str]:
    """The keys whose value is taken from another key, with what stands there: `${optim.lr}`."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, str) and "${" in value:
            yield key, value

    return dict(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def refuse_interpolations(tree: object, key: str = "") -> None:
    """Raises ConfigError for `${…}` other than `${oc.env:NAME}`, which gives a text: others could make nodes unseen."""
    if isinstance(tree, (Mapping, list)):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            refuse_interpolations(name, f"{key}.{name}" if key else str(name))
            refuse_interpolations(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, str) and "${" in re.sub(r"\$\{oc\.env:[^{}]*\}", "", tree):
        raise ConfigError([f"{key}: {tree!r:.100} is not resolved; a run folder holds plain values and ${{oc.env:…}}"])


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

    Values of keys that name a secret (`api_key`, `password`, `token`, not `num_memory_tokens`) become `***`.
    """
    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", lambda name, *default: f"${{oc.env:{name}}}", replace=True)
    try:
        OmegaConf.clear_cache(cfg)
        tree = _as_dict(OmegaConf.to_container(cfg, resolve=True))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.clear_cache(cfg)

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: "***" if SECRET.search(str(k)) and isinstance(v, str) and "${" not in v else hide(v)
                for k, v in value.items()
            }
        return [hide(item) for item in value] if isinstance(value, list) else value

    return hide(tree)


def _as_dict(tree: object) -> dict[str, Any]:
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


# ---------------------------------------------------------------------------------------------------------------- check


def near(word: str, known: Collection[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


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


def _check_call(node: Mapping[str, Any], target: Callable[..., object], key: str) -> Iterator[str]:
    parameters = _parameters(target)
    hints = _hints(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name, value in node.items():
        path = f"{key}.{name}" if key else str(name)
        if name in _HYDRA_KEYS:
            continue
        if name not in named:
            if not open_ended:
                yield f"{path}: {_name(target)} has no such argument{near(str(name), named)}"
            continue
        yield from _check_value(value, hints.get(name, Any), path)
    if not node.get("_partial_"):
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in node:
                yield f"{key + '.' if key else ''}{name}: missing; {_name(target)} needs it"


def _check_value(value: Any, hint: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" in value:
        try:
            target = locate(value["_target_"], path)
        except ConfigError as error:
            yield from error.problems
            return
        expected = _classes(hint)
        made = target if inspect.isclass(target) else _hints(target).get("return")
        if expected and not (inspect.isclass(made) and issubclass(made, expected)):
            yield f"{path}._target_: {value['_target_']} is no {' or '.join(c.__name__ for c in expected)}"
        partial_or_made = {_takes_partial(option) for option in _options(hint) if option is not type(None)}
        if expected and bool(value.get("_partial_")) not in partial_or_made:
            yield f"{path}._partial_: must be {str(partial_or_made.pop()).lower()} here"
        yield from _check_call(value, target, path)
    elif isinstance(value, Mapping) and (group := _dataclass(hint)):
        yield f"{path}: must be a node: add `_target_: {group.__module__}.{group.__qualname__}`"
    elif _has_node(value):
        inner = _item_hint(hint)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _check_value(item, inner, f"{path}.{name}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path}: must be a finite number, not {value!r}"
    else:
        try:
            plain = json.dumps(value)
        except (TypeError, ValueError):
            yield f"{path}: must be a plain value, not {value!r:.60}"
            return
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
            adapter.validate_json(plain, strict=True)
        except ValidationError as error:
            yield f"{path}: {_reason(error)}, not {value!r}"
        except SchemaError:  # a class of ours that pydantic cannot read, and a value that is no node
            yield f"{path}: must be a node with a _target_, not {value!r}"
        except (PydanticUserError, TypeError, NameError, ValueError):
            return  # a type that pydantic cannot read, such as another library's: only the name could be checked


def _reason(error: ValidationError) -> str:
    """What pydantic found, in one line, a union's members joined by "or"; `[0]` says which item of a list."""
    readable = [detail for detail in error.errors() if detail["type"] != "needs_python_object"]
    if not readable:
        return "must be a node with a _target_"
    reasons = []
    for detail in readable:
        item = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
        reason = item + re.sub(r"^(Input|String|Value) should", " must" if item else "must", detail["msg"])
        if reason not in reasons:
            reasons.append(reason)
    return " or ".join(reasons)


def _parameters(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target).parameters)
    except (ValueError, TypeError):
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _hints(target: Callable[..., object]) -> dict[str, Any]:
    """The resolved annotations of a callable; empty where one cannot be resolved (then names alone are checked)."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _name(target: Callable[..., object]) -> str:
    return getattr(target, "__qualname__", str(target))


def _has_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(_has_node(item) for item in value.values())
    return isinstance(value, list) and any(_has_node(item) for item in value)


def _item_hint(hint: Any) -> Any:
    """What the values of a mapping or the items of a sequence must be."""
    for option in _options(hint):
        if (origin := get_origin(option)) and inspect.isclass(origin) and issubclass(origin, (Mapping, Sequence)):
            return get_args(option)[-1] if get_args(option)[-1] is not ... else get_args(option)[0]
    return Any


def _options(hint: Any) -> Iterator[Any]:
    """The members of a union, without the `Annotated` around them."""
    if get_origin(hint) is Annotated:
        yield from _options(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes a nested node may make: `X`, or what a `Callable[..., X]` returns; empty = anything."""
    found = []
    for option in _options(hint):
        if get_origin(option) is Callable:
            found += _classes(get_args(option)[-1])
        elif option is Any or not inspect.isclass(option) or getattr(option, "_is_protocol", False):
            return ()
        elif option is not type(None):
            found.append(option)
    return tuple(found)


def _takes_partial(option: Any) -> bool:
    """Whether a node is left for its receiver to call; a factory without arguments is made by `build_arguments`."""
    return get_origin(option) is Callable and get_args(option)[0] != []


def _dataclass(hint: Any) -> type | None:
    return next((found for found in _classes(hint) if dataclasses.is_dataclass(found)), None)


# ---------------------------------------------------------------------------------------------------------------- build


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
        for key, target in targets(tree):
            locate(target, key.removesuffix("._target_"))
    return instantiate(tree, _convert_="all") if isinstance(tree, (dict, list)) else tree


def build_arguments(tree: Mapping[str, Any], schema: Callable[..., object]) -> dict[str, Any]:
    """The keyword arguments of `schema` from a checked tree.

    What is annotated `Callable[[], X]` becomes a factory, to be built later and again; all the rest is built now.
    """
    hints = _hints(schema)
    return {name: _argument(value, hints.get(name, Any)) for name, value in tree.items()}


def _argument(value: Any, hint: Any) -> Any:
    for option in _options(hint):
        if get_origin(option) is Callable and not get_args(option)[0]:
            return partial(build, value)
    if isinstance(value, Mapping) and "_target_" not in value and (inner := _item_hint(hint)) is not Any:
        return {name: _argument(item, inner) for name, item in value.items()}
    return build(value)
