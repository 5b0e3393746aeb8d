"""The signature is the schema: what is refused, how it is said, what is built, what never leaves the process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from annotated_types import Gt
from omegaconf import OmegaConf

from mmfusion import config
from mmfusion.config import ConfigError

if TYPE_CHECKING:  # so that at run time the annotation cannot be resolved
    from decimal import Decimal as NoSuchType


class Wheel:
    def __init__(self, *, size: Annotated[int, Gt(0)], colour: Literal["red", "blue"] = "red") -> None:
        self.size, self.colour = size, colour


class Engine:
    def __init__(self, power: float = 1.0, later: NoSuchType | None = None) -> None:
        self.power = power


@dataclass(frozen=True)
class Places:
    home: str = "here"


def drive(
    *,
    wheels: Mapping[str, Wheel],
    make: Callable[[], Wheel] | None = None,
    speeds: list[float] | None = None,
    places: Places | None = None,
    hire: Callable[..., Wheel] | None = None,
    either: Wheel | Callable[..., Wheel] | None = None,
    engine: Any = None,
) -> None: ...


def node(target: object = Wheel, **values: object) -> dict[str, object]:
    name = target if isinstance(target, str) else f"{__name__}.{target.__qualname__}"  # pyright: ignore[reportAttributeAccessIssue]  (a class or a function)
    return {"_target_": name, **values}


def problems(**tree: object) -> list[str]:
    try:
        config.check({"wheels": {}, **tree}, drive)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"wheels": {"a": node(siez=3, size=3)}}, "wheels.a.siez: Wheel has no such argument; did you mean 'size'?"),
        ({"wheels": {"a": node(size="3")}}, "wheels.a.size: must be a valid integer, not '3'"),
        ({"wheels": {"a": node(size=True)}}, "wheels.a.size: must be a valid integer, not True"),
        ({"wheels": {"a": node(size=-1)}}, "wheels.a.size: must be greater than 0, not -1"),
        ({"wheels": {"a": node()}}, "wheels.a.size: missing; Wheel needs it"),
        ({"wheels": {"a": node(size=1, colour="green")}}, "wheels.a.colour: must be 'red' or 'blue', not 'green'"),
        ({"wheels": {"a": node(Engine)}}, f"wheels.a._target_: {__name__}.Engine is no Wheel"),
        ({"speeds": "1"}, "speeds: must be a list such as [a, b], not '1'"),
        ({"speeds": "[1, 2]"}, "speeds: must be a list such as [a, b], not '[1, 2]'; write it without quotes"),
        ({"wheels": {"a": node(size="")}}, "wheels.a.size: must be a valid integer, not '' (nothing stands after"),
        (
            {"wheels": {"a": None, "b": node(size=1)}},
            "wheels.a: must be a node with a _target_, not None; to leave it out: ~wheels.a",
        ),
        ({"speeds": [1.0, math.nan]}, "speeds: [1] must be a finite number, not [1.0, nan]"),
        ({"engine": node(Engine, power=math.inf)}, "engine.power: must be a finite number, not inf"),
        ({"engine": node(Engine, powr=1.0)}, "engine.powr: Engine has no such argument; did you mean 'power'?"),
        ({"make": node(size=0)}, "make.size: must be greater than 0, not 0"),
        ({"places": node(Places, hone="x")}, "places.hone: Places has no such argument; did you mean 'home'?"),
        ({"places": {"home": "x"}}, f"places: must be a node: add `_target_: {__name__}.Places`"),
        ({"places": node(Places, _partial_=True)}, "places._partial_: must be false here"),
        ({"make": node(size=1, _partial_=True)}, "make._partial_: must be false here"),
        ({"hire": node(size=1)}, "hire._partial_: must be true here"),
        ({"wheel": {}}, "wheel: drive has no such argument; did you mean 'wheels'?"),
        ({"engine": node("torch.nn.Lineer")}, "engine._target_: torch.nn has no 'Lineer'; did you mean 'Linear'?"),
        ({"engine": node("no_such_package.X")}, "engine._target_: no module named 'no_such_package'; install it"),
        ({"engine": {"_target_": ["a"]}}, "engine._target_: must be a dotted name such as my_package.MyEncoder, not"),
    ],
)
def test_one_line_names_key_reason_and_near_match(tree: dict[str, object], expected: str) -> None:
    found = problems(**tree)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_right_tree_passes_and_is_built_with_factories_left_to_be_called() -> None:
    tree = {"wheels": {"a": node(size=2)}, "make": node(size=3), "speeds": [1, 2.5]}
    tree |= {"places": node(Places, home="there"), "hire": node(_partial_=True)}
    assert problems(**tree) == problems(either=node(size=1)) == problems(either=node(_partial_=True)) == []
    built = config.build_arguments(tree, drive)
    assert built["wheels"]["a"].size == 2
    first, second = built["make"](), built["make"]()
    assert first.size == 3
    assert first is not second
    assert built["places"] == Places("there")
    assert built["hire"](size=4).size == 4


def test_a_class_of_torch_is_checked_like_ours() -> None:
    bad = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3, "weight_decy": 0.1}
    assert problems(engine=bad) == ["engine.weight_decy: AdamW has no such argument; did you mean 'weight_decay'?"]


@pytest.mark.parametrize(
    "target", ["builtins.exec", "numpy.load", "logging.os.system", "functools.partial", ["numpy.load"]]
)
def test_what_is_not_allowed_is_refused_before_it_is_imported(target: object) -> None:
    with pytest.raises(ConfigError, match="not built from a checkpoint"):
        config.build(
            {"a": [{"_target_": f"{__name__}.Wheel", "size": {"_target_": target}}]}, allow={f"{__name__}.Wheel"}
        )


def test_environment_and_secrets_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    cfg = OmegaConf.create(
        {"a": "${oc.env:MY_KEY}", "b": "x ${a}", "api_key": "hunter2", "num_memory_tokens": 4, "token": "${a}"}
    )
    shown = config.printable(cfg)
    assert "hunter2" not in str(shown)
    assert shown["num_memory_tokens"] == 4
    assert shown["a"] == "${oc.env:MY_KEY}"
    assert config.plain(cfg)["b"] == "x hunter2"


def test_what_is_no_secret_is_kept_as_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMFUSION_UNSET", raising=False)
    tree = {"root": "${oc.env:MMFUSION_UNSET,/data}", "tokenizer": "${root}/t", "class_token": "cls", "hub_token": "x"}
    tree["again"] = "${oc.env:MMFUSION_UNSET_TOKEN,hunter2}"
    shown = config.printable(OmegaConf.create(tree))
    kept = {"root": "/data", "tokenizer": "/data/t", "class_token": "cls", "hub_token": "***"}
    assert shown == {**kept, "again": "${oc.env:MMFUSION_UNSET_TOKEN}"}
