"""Editors see in a file what `check` would say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from omegaconf import OmegaConf

from mmfusion import config
from mmfusion.cli.session import train
from mmfusion.cli.settle import settled


@pytest.fixture(scope="module")
def ours() -> Any:
    schema = config.json_schema(train, [config.conf_dir()])
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def quickstart() -> dict[str, Any]:
    cfg = config.compose([])
    settled(cfg)
    return config.printable(cfg)


def changed(tree: dict[str, Any], key: str, value: object) -> Any:
    cfg = OmegaConf.create(tree)
    OmegaConf.update(cfg, key, value, force_add=True)
    return OmegaConf.to_container(cfg, resolve=False)


def test_the_composed_quickstart_is_valid(ours: Any, quickstart: dict[str, Any]) -> None:
    ours.validate(quickstart)


# But those of sweeps, which are no part of a run's configuration: tests/sweep/test_space.py.
FILES = sorted(file for file in config.conf_dir().rglob("*.yaml") if file.parent.name != "sweep")


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_file_of_ours_is_valid(file: Path, ours: Any) -> None:
    ours.validate(OmegaConf.to_container(OmegaConf.load(file), resolve=False))


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("modle", 1, False),
        ("optim.lrr", 1, False),
        ("optim.lr", "fast", False),
        ("optim.lr", "${my.lr}", True),
        ("steps", -1, False),
        ("steps", "5", False),
        ("seed", True, False),
        ("data.augment.image.flip", 2.0, False),
        ("data.augment", None, True),
        ("data.reader", "indxed", False),
        ("data.workers", None, False),
        ("model._target_", "torch.optim.AdamW", False),
        ("model.encoders.touch", {"_target_": "my_package.Touch"}, False),
        ("model.encoders.video", {"_target_": "my_package.Video", "depth": 2}, True),
        ("objective.contrastive.pairs", "audio", False),
        ("callbacks.stop", 3, False),
    ],
)
def test_it_says_of_a_change_what_check_says(
    ours: Any, quickstart: dict[str, Any], key: str, value: object, valid: bool
) -> None:
    assert ours.is_valid(changed(quickstart, key, value)) == valid


@pytest.mark.parametrize(
    ("part", "valid"),
    [
        ({"data": {"batch_size": 8, "augment": None}}, True),
        ({"data": {"batch_size": 8, "augmnt": None}}, False),
        ({"defaults": ["adamw"], "lr": 0.1}, True),
        ({"data": {"batch_size": "x"}}, False),
        ({"defaults": ["sample"], "captions": {"limit": 8}}, True),
        ({"mine": {"_target_": "mmfusion.training.callbacks.StopBetweenSteps", "x": 1}}, False),
    ],
)
def test_a_file_that_holds_a_part_is_checked_too(ours: Any, part: dict[str, Any], valid: bool) -> None:
    assert ours.is_valid(part) == valid


def test_unions_in_another_order_give_the_same_bytes() -> None:
    def one(*, a: int | str | None = None, b: dict[str, list[int | str]] | None = None) -> None: ...

    def other(*, a: str | int | None = None, b: dict[str, list[str | int]] | None = None) -> None: ...

    first, second = (json.dumps(config.json_schema(root, [])) for root in (one, other))
    assert first == second


class Touch:
    def __init__(self, *, depth: int = 1) -> None:
        """`depth` layers of touch. The rest is silence."""


def test_a_class_of_ones_own_is_in_it_and_one_that_cannot_be_imported_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(f"_target_: {__name__}.Touch\nother:\n  _target_: nowhere.Other\n")
    schema = config.json_schema(train, [tmp_path])
    mine = schema["$defs"][f"{__name__}.Touch"]
    assert mine["properties"]["depth"]["default"] == 1
    assert mine["additionalProperties"] is False
    assert "no module named 'nowhere'" in schema["$defs"]["nowhere.Other"]["description"]
    valid = jsonschema.Draft202012Validator(schema).is_valid
    assert valid({"_target_": f"{__name__}.Touch", "depth": 2})
    assert valid({"_target_": "nowhere.Other", "anything": 2})
    assert not valid({"_target_": f"{__name__}.Touch", "dept": 2})
