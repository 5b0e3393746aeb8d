"""The command line as Hydra takes it, and the groups of configuration trees that it chooses from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mmfusion.config.problems import ConfigError, near


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


def as_overrides(arguments: Sequence[str], config_dirs: Sequence[Path], *, sweep: bool = False) -> list[str]:
    """The command line as Hydra takes it: `a.b=c` becomes `++a.b=c`, to set keys that only a signature knows.

    The choice of a group's option (`model=tiny`) stays as it is; an option that does not exist raises ConfigError here,
    with the near match, and so does a sweep (`a=1,2`) where none is asked for. Whether `a.b` exists at all is for
    `check` to say.
    """
    known = groups(config_dirs)
    result = []
    for argument in arguments:
        override = _parsed(argument, known)
        name = override.key_or_group
        if override.is_sweep_override() and not sweep:
            raise ConfigError([_several(argument)])
        if override.is_sweep_override() or override.is_delete():
            pass
        elif name == "sweep":
            raise ConfigError([f"{argument}: is no part of a run; search it with: mmfusion sweep {override.value()}"])
        elif name in known:
            _check_choice(name, override.value(), known[name])
        elif group := _meant(name, override.value(), known):
            meant = f"~{group} to leave out all of it" if override.value() is None else f"{group}={override.value()}"
            raise ConfigError([f"{argument}: {name} is no group; did you mean {meant}?"])
        if name not in known and not argument.startswith(("+", "~")) and not name.startswith("hydra."):
            argument = "++" + argument
        result.append(argument)
    return result


def _parsed(argument: str, known: Mapping[str, Sequence[str]]) -> Override:
    if argument.startswith("-"):
        raise ConfigError([f"{argument}: no such option; see `mmfusion train --help`"])
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        key, equals, value = argument.partition("=")
        choices = [f"{group}={argument}" for group, options in known.items() if argument in options]
        unquoted = f"quote text: {_quoted(key, value)}"
        remedy = unquoted if equals else f"did you mean {(choices or [f'{argument}=VALUE'])[0]}?"
        reason = str(error).splitlines()[0]
        raise ConfigError([f"{argument}: not of the form key=value ({reason}); {remedy}"]) from error


def _quoted(key: str, value: str) -> str:
    """`key=value` as a shell hands it on with the value quoted for Hydra."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    if "'" in value and not re.search(r"[$`!\\]", value):  # the only quotes of a shell that can hold one
        return f'"{key}=\\"{escaped}\\""'
    return shlex.quote(f'{key}="{escaped}"')


def _several(argument: str) -> str:
    key, _, value = argument.partition("=")
    as_list, as_text = shlex.quote(f"{key}=[{value}]"), _quoted(key, value)
    return f"{argument}: several values; a list is {as_list}, a text {as_text}, one run for each needs train -m"


def _check_choice(group: str, choice: Any, options: Sequence[str]) -> None:
    if choice is None:
        raise ConfigError([f"{group}=null: a group is set to no name; give {group}=NAME, or ~{group} to leave it out"])
    for name in choice if isinstance(choice, list) else [choice]:
        if options and name not in options:
            raise ConfigError(
                [f"{group}={name}: no such option{near(str(name), options)}; there are: {', '.join(options)}"]
            )


def _meant(name: str, choice: Any, known: Mapping[str, Sequence[str]]) -> str | None:
    """The group that `model.image=naflex`, `image=naflex` or `model.encoders.image=null` seems to mean."""
    first, _, last = name.replace(".", "/").partition("/")
    for group, options in known.items():
        if choice in options and (group == f"{first}/{last}" or group.endswith(f"/{name}")):
            return group
        if choice is None and last and group == f"{first}/{last.rpartition('/')[2]}":
            return group
    return None
