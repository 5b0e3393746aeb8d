"""A sweep as it is written down: `conf/sweep/NAME.yaml`, read, checked and turned into overrides of `mmfusion train`.

Nothing of Optuna is in here: what may be searched is checked before it is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from mmfusion import config, runs
from mmfusion.config import ConfigError, near

FOLDER = "sweep"  # of a configuration tree
# What a trial is given by the sweep itself, and what to do instead.
GIVEN = {
    "paths": "are the trial's own; say where all of them go with --folder FOLDER",
    "resume": "goes on with one run; the same `mmfusion sweep` command goes on with a sweep",
    "evaluation": "is for the winner: trials are judged on the validation split alone",
    "logger.csv": "is what the sweep reads",
    "launcher": "is of one run; give --jobs",
}
ALIKE = ("seed", "steps", "trainer.val_check_interval")  # in all trials, so that their values can be compared
NAME = r"[\w.-]+"  # of a sweep: it is part of what is typed, and of a file's name
KEY = r"[A-Za-z_][\w./@-]*"
WORDS = ("null", "true", "false", "nan", "inf", "infinity")  # that are no text to Hydra


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _Range(_Strict):
    log: bool = False

    def _checked(self, low: float, high: float, step: float | None) -> None:
        if not low < high:
            raise ValueError(f"low {low:g} is not below high {high:g}; swap them, or give the key in overrides")
        if self.log and low <= 0:
            raise ValueError(f"low {low:g} has no logarithm; give one above 0, or log: false")
        if self.log and step is not None:
            raise ValueError("log and step exclude each other; leave one out")
        if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-6:
            raise ValueError(f"high {high:g} is not reached from low {low:g} in steps of {step:g}; change one of them")


class Float(_Range):
    """A number of `low` to `high`, on a log scale or in steps."""

    kind: Literal["float"]
    low: float
    high: float
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Float:
        self._checked(self.low, self.high, self.step)
        return self

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


class Int(_Range):
    """A whole number of `low` to `high`, both included."""

    kind: Literal["int"]
    low: int
    high: int
    step: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Int:
        self._checked(self.low, self.high, self.step)
        return self

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]


class Choice(_Strict):
    """One of `values`, which have no order: numbers, texts, lists, or the options of a group."""

    kind: Literal["choice"]
    values: Annotated[list[Any], Field(min_length=2)]

    @model_validator(mode="after")
    def _check(self) -> Choice:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a value stands there twice; leave one out")
        return self

    @property
    def ends(self) -> list[Any]:
        return self.values

    @property
    def labels(self) -> list[str]:
        """The values as JSON: what the study keeps, where 1, 1.0 and true would be one."""
        return [json.dumps(value, ensure_ascii=False) for value in self.values]


Dimension = Annotated[Float | Int | Choice, Field(discriminator="kind")]


class Pruner(_Strict):
    """When a trial is ended early: below the median of those before it, at the same step.

    Neither within the first `after_trials` trials, nor before `after_steps` steps. It looks at the first repeat alone.
    """

    kind: Literal["none", "median"] = "none"
    after_trials: Annotated[int, Field(ge=0)] = 4
    after_steps: Annotated[int, Field(ge=0)] = 0


class Sweep(_Strict):
    """The keys of `conf/sweep/NAME.yaml`."""

    metric: Annotated[str, Field(pattern=r"^val/.+")]
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: Annotated[int, Field(gt=0)]
    repeats: Annotated[int, Field(gt=0)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    pruner: Pruner = Pruner()
    overrides: list[str] = []
    only_in_trials: list[str] = []
    space: Annotated[dict[str, Dimension], Field(min_length=1)]

    def overridden(self, given: Sequence[str]) -> Sweep:
        """With what is `given` on the command line, which stands above what the file says of the same keys."""
        keys = {key_of(one) for one in given}
        short = {key_of(one) for one in self.only_in_trials}
        return self.model_copy(
            update={
                "overrides": [o for o in self.overrides if key_of(o) not in keys]
                + [o for o in given if key_of(o) not in short],
                "only_in_trials": [o for o in self.only_in_trials if key_of(o) not in keys]
                + [o for o in given if key_of(o) in short],
            }
        )

    def arguments(self, values: Mapping[str, Any]) -> list[str]:
        """What `mmfusion train` is given for these values; no seed and no folder."""
        return [*self.overrides, *self.only_in_trials, *assigned_all(values), "evaluation=none"]

    def kept(self, values: Mapping[str, Any]) -> list[str]:
        """What a run with these values is given that is no trial."""
        return [*self.overrides, *assigned_all(values)]

    def tried(self) -> Iterator[dict[str, Any]]:
        """Values in which each end of each range, and each choice, is met once."""
        ends = {key: dimension.ends for key, dimension in self.space.items()}
        for row in range(max(map(len, ends.values()))):
            yield {key: values[min(row, len(values) - 1)] for key, values in ends.items()}


def read(name: str, config_dir: Path | None = None) -> tuple[Path, Sweep]:
    """The file of a sweep and what it says.

    Raises ConfigError in one line with file, key and remedy: no such sweep, no YAML, a space that cannot be searched.
    """
    trees = config.conf_trees(config_dir)
    if not re.fullmatch(NAME, name, re.ASCII):
        raise ConfigError([f"{name!r}: no name of a sweep; name its file with letters, digits, . _ and - alone"])
    known = sorted({file.stem for tree in trees for file in (tree / FOLDER).glob("*.yaml")})
    files = [file for tree in reversed(list(trees)) if (file := tree / FOLDER / f"{name}.yaml").is_file()]
    if name not in known or not files:
        there = f"there are: {', '.join(known)}" if known else f"write {FOLDER}/{name}.yaml"
        raise ConfigError([f"{name}: no such sweep{near(name, known)}; {there}"])
    told = _told(files[0], trees)
    try:
        return Path(told), Sweep.model_validate(OmegaConf.to_container(OmegaConf.load(files[0]), resolve=False))
    except ValidationError as error:
        raise ConfigError([f"{told}: {one}" for one in _problems(error)]) from error
    # the last four: numbers of hundreds of digits, values nested by the hundred, what is no text, number or list
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise ConfigError([f"{told}: cannot be read ({' '.join(str(error).split())[:200]})"]) from error


def _told(file: Path, trees: Mapping[Path, str]) -> str:
    for tree, name in trees.items():
        if file.is_relative_to(tree):
            return f"{name}/{file.relative_to(tree).as_posix()}"
    return str(file)


def check(file: Path, sweep: Sweep, settled: Callable[[list[str]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Compose and check the configuration with each end of each range and with each choice: the trees.

    `settled` makes the checked tree of overrides. Raises ConfigError, with the file, for a key that is not there or is
    given twice, a value that its signature refuses, or steps at the end of which nothing is validated.
    """
    _refuse_given(file, sweep)
    trees = []
    for values in sweep.tried():
        try:
            trees.append(settled(sweep.arguments(values)))
        except ConfigError as error:
            raise ConfigError([" ".join(f"{file}: {problem}".split()) for problem in error.problems]) from error
        except RecursionError as error:
            raise ConfigError([f"{file}: space: a value is nested too deep; make it flatter"]) from error
    for key in ALIKE:
        if len({str(dict(config.leaves(tree)).get(key)) for tree in trees}) > 1:
            raise ConfigError([f"{file}: {key}: all trials have the same; give it among the overrides"])
    for tree in trees:
        steps, every = tree["steps"], tree["trainer"].get("val_check_interval")
        if not isinstance(every, int) or steps % every:
            remedy = "give only_in_trials a trainer.val_check_interval that divides steps"
            last = f"the last of {steps} steps would not be judged, as validation is every {every}"
            raise ConfigError([f"{file}: trainer.val_check_interval: {last}; {remedy}"])
        if "csv" not in tree["logger"]:
            raise ConfigError([f"{file}: logger: a sweep reads metrics.csv; leave csv among the loggers"])
        if tree.get("launcher"):
            raise ConfigError([f"{file}: launcher: {GIVEN['launcher']}"])
    return trees


def _refuse_given(file: Path, sweep: Sweep) -> None:
    overrides = [*sweep.overrides, *sweep.only_in_trials]
    set_there = {key_of(one) for one in overrides}
    for key in sweep.space:
        if not re.fullmatch(KEY, key, re.ASCII) or key.startswith("hydra"):
            raise ConfigError([f"{file}: space: {key!r} is no key of the configuration"])
    for key in (*sweep.space, *set_there):
        for given, why in GIVEN.items():
            if key == given or key.startswith(f"{given}."):
                raise ConfigError([f"{file}: {key}: {why}"])
    for one in overrides:
        if runs.masked(one) != one and "=${" not in one:
            remedy = f"give {key_of(one)}=${{oc.env:NAME}}, a variable of the environment"
            raise ConfigError([f"{file}: {key_of(one)}: a secret would stand in the study and on its page; {remedy}"])
    if sums := [
        key for key in sweep.space if sweep.metric == "val/loss" and key.split(".")[0] in ("weights", "objective")
    ]:
        remedy = "judge by a part of it that all trials have, such as val/captioning"
        raise ConfigError(
            [f"{file}: {sums[0]}: changes what val/loss is the sum of, so that values cannot be compared; {remedy}"]
        )
    if twice := sorted(set_there & set(sweep.space)):
        raise ConfigError([f"{file}: {twice[0]}: is searched, and set among the overrides too; leave one out"])


def key_of(override: str) -> str:
    """`+a.b=1` and `~a.b` are of the key `a.b`."""
    return override.lstrip("+~").partition("=")[0]


def assigned_all(values: Mapping[str, Any]) -> list[str]:
    return [assigned(key, value) for key, value in values.items()]


def assigned(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar, which reads it back as the same value."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}: {_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_written, value)) + "]"
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and text.lower() not in WORDS
    return text if plain else _quoted(text)


def _quoted(text: str) -> str:
    """In double quotes, in which Hydra reads a backslash as itself but before a quote."""
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (r"\"" if m[2] else ""), text) + '"'


def short(value: Any) -> str:
    """A value as tables show it: four digits of a number that is no whole one."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _problems(error: ValidationError) -> Iterator[str]:
    """Each problem with its key: `space.optim.lr.low: …`."""
    known = {**dict.fromkeys(Sweep.model_fields), **dict.fromkeys(Pruner.model_fields)}
    for kind in (Float, Int, Choice):
        known |= dict.fromkeys(kind.model_fields)
    for one in error.errors():
        place = [str(part) for part in one["loc"]]
        if place[:1] == ["space"] and len(place) > 2 and place[2] in ("float", "int", "choice"):
            del place[2]
        key = ".".join(place) or "the file"
        reason = one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            reason = f"there is no such key{near(place[-1], known)}"
        elif one["type"] in ("union_tag_invalid", "union_tag_not_found"):
            given = (one.get("ctx") or {}).get("tag")
            reason = f"kind must be float, int or choice{f', not {given}' if given else ': give one'}"
        elif place == ["space"] and one["type"] == "too_short":
            reason = "is empty; name at least one key to search, such as optim.lr: {kind: float, low: 1e-4, high: 1e-2}"
        elif place == ["metric"] and one["type"] == "string_pattern_mismatch":
            reason = f"{one['input']} is none of validation; trials are judged by one, such as val/loss"
        elif one["type"] == "missing":
            reason = "is missing"
        else:
            reason = re.sub(r"^(Input|String|Value|List|Dictionary) should", "must", reason)
            if one["type"] not in ("value_error",) and isinstance(one["input"], (str, int, float, bool)):
                reason += f", not {one['input']!r}"
        yield f"{key}: {reason}"
