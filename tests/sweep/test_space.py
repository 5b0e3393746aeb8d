"""What may stand in a file of a sweep, and what each value is as an override."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion import config
from mmfusion.cli.settle import settled
from mmfusion.config import ConfigError
from mmfusion.sweep import space
from mmfusion.sweep.space import Choice, Float, Int, assigned, read
from tests.sweep.small import space as small

SHIPPED = sorted(file.stem for file in (config.conf_dir() / "sweep").glob("*.yaml"))


def written(tree: Path, name: str = "mine", **changed: Any) -> Path:
    """A configuration tree with a sweep `name`."""
    told = {"metric": "val/loss", "trials": 2, "space": {"optim.lr": {"kind": "float", "low": 1e-4, "high": 1e-2}}}
    (tree / "sweep").mkdir(parents=True, exist_ok=True)
    (tree / "sweep" / f"{name}.yaml").write_text(yaml.dump({**told, **changed}))
    return tree


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_is_checked_with_each_of_its_ends(name: str) -> None:
    file, sweep = read(name)
    assert file.as_posix() == f"conf/sweep/{name}.yaml"
    trees = space.check(file, sweep, lambda given: settled(config.compose(given)))
    assert not any(tree["evaluation"] for tree in trees)  # no test split in a trial
    assert (config.conf_dir().parent / file).read_text().startswith("# ")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"space": {"a": {"kind": "float", "low": 2.0, "high": 1.0}}}, "space.a: low 2 is not below high 1; swap them"),
        ({"space": {"a": {"kind": "int", "low": 1, "high": 1}}}, "space.a: low 1 is not below high 1"),
        ({"space": {"a": {"kind": "int", "low": 1.5, "high": 3}}}, "space.a.low: must be a valid integer, not 1.5"),
        ({"space": {"a": {"kind": "float", "low": 0.0, "high": 1.0, "log": True}}}, "space.a: low 0 has no logarithm"),
        (
            {"space": {"a": {"kind": "int", "low": 0, "high": 5, "step": 2}}},
            "space.a: high 5 is not reached from low 0",
        ),
        ({"space": {"a": {"kind": "int", "low": 1, "high": 5, "step": 2, "log": True}}}, "exclude each other"),
        (
            {"space": {"a": {"kind": "flaot", "low": 0.0, "high": 1.0}}},
            "space.a: kind must be float, int or choice, not",
        ),
        ({"space": {"a": {"low": 0.0, "high": 1.0}}}, "space.a: kind must be float, int or choice: give one"),
        ({"space": {"a": {"kind": "float", "lo": 0.0, "high": 1.0}}}, "space.a.low: is missing"),
        ({"space": {"a": {"kind": "float", "low": 0.0, "high": 1.0, "stepp": 1.0}}}, "did you mean 'step'?"),
        ({"space": {"a": {"kind": "float", "low": float("nan"), "high": 1.0}}}, "space.a.low: must be a finite number"),
        ({"space": {"a": {"kind": "choice", "values": [1]}}}, "space.a.values: must have at least 2 items"),
        ({"space": {"a": {"kind": "choice", "values": [[1], [1]]}}}, "space.a: a value stands there twice"),
        ({"space": {}}, "space: is empty; name at least one key to search"),
        ({"metric": "picture_to_name/R@1"}, "metric: picture_to_name/R@1 is none of validation; "),
        ({"metrics": "val/loss"}, "metrics: there is no such key; did you mean 'metric'?"),
        ({"direction": "down"}, "direction: must be 'minimize' or 'maximize', not 'down'"),
        ({"trials": 0}, "trials: must be greater than 0, not 0"),
        ({"repeats": "three"}, "repeats: must be a valid integer, not 'three'"),
        ({"pruner": {"kind": "medain"}}, "pruner.kind: must be 'none' or 'median', not 'medain'"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(changed: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read("mine", written(tmp_path, **changed))
    assert any(problem.startswith(f"{tmp_path}/sweep/mine.yaml: ") for problem in raised.value.problems)
    assert expected in raised.value.problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "a: [1", "\x00", "- 1\n- 2\n", "", "3", "[" * 5000, f"metric: val/loss\ntrials: {'9' * 400}\n",
        "space: {a: {kind: float, low: -1.0e300, high: 1.0e300, step: 1.0e-300}}\n",
        f"space: {{a: {{kind: int, low: 1, high: {'9' * 400}, step: 2}}}}\n",
        "space: {a: {kind: choice, values: [!!binary aGVsbG8=, 1]}}\n",
    ],
)  # fmt: skip
def test_a_file_that_holds_no_sweep_is_one_line(text: str, tmp_path: Path) -> None:
    tree = written(tmp_path)
    (tree / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/sweep/mine.yaml: "):
        read("mine", tree)


def test_a_name_that_is_not_there_has_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quikstart: no such sweep; did you mean 'quickstart'\?; there are: "):
        read("quikstart")
    for name in ("../experiment/quickstart", "a=b", "a,b", "größe", "[q]", "it's", ""):
        with pytest.raises(ConfigError, match="no name of a sweep; name its file with letters"):
            read(name)


def test_the_users_own_stands_before_ours(tmp_path: Path) -> None:
    file, sweep = read("quickstart", written(tmp_path, "quickstart", trials=77))
    assert (file, sweep.trials) == (tmp_path / "sweep" / "quickstart.yaml", 77)


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    return [deep(levels - 1)] if levels else 1


def checked(**changed: Any) -> None:
    told = {"space": {"optim.lr": {"kind": "float", "low": 1e-4, "high": 1e-2}},
            "only_in_trials": ["steps=4", "trainer.val_check_interval=2"]}  # fmt: skip
    space.check(Path("mine.yaml"), small(**{**told, **changed}), lambda given: settled(config.compose(given)))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"space": {"optim.lrr": {"kind": "float", "low": 0.1, "high": 0.2}}},
         "mine.yaml: optim.lrr: AdamW has no such argument; did you mean 'lr'?"),
        ({"space": {"modle": {"kind": "choice", "values": ["tiny", "small"]}}}, "mine.yaml: modle: train has no"),
        ({"space": {"model": {"kind": "choice", "values": ["tiny", "smal"]}}}, "model=smal: no such option; did you"),
        ({"space": {"data.augment.image.flip": {"kind": "float", "low": 0.0, "high": 2.0}}},
         "mine.yaml: data.augment.image.flip: must be less than or equal to 1, not 2.0"),
        ({"space": {"seed": {"kind": "int", "low": 0, "high": 3}}}, "mine.yaml: seed: all trials have the same"),
        ({"space": {"steps": {"kind": "int", "low": 4, "high": 8}}, "only_in_trials": ["trainer.val_check_interval=2"]},
         "mine.yaml: steps: all trials have the same"),
        ({"space": {"trainer.val_check_interval": {"kind": "choice", "values": [2, 4]}}, "only_in_trials": ["steps=4"]},
         "mine.yaml: trainer.val_check_interval: all trials have the same"),
        ({"space": {"++seed": {"kind": "int", "low": 0, "high": 3}}}, "mine.yaml: space: '++seed' is no key"),
        ({"space": {"a\nb": {"kind": "int", "low": 0, "high": 3}}}, "mine.yaml: space: 'a\\nb' is no key"),
        ({"space": {"hydra.run.dir": {"kind": "choice", "values": ["a", "b"]}}}, "'hydra.run.dir' is no key"),
        ({"overrides": ["optim.wd\nx=1"]}, "mine.yaml: optim.wd"),
        ({"overrides": ["launcher=slurm"]}, "mine.yaml: launcher: is of one run; give --jobs"),
        ({"overrides": ["logger=[csv,wandb]", "logger.wandb.api_key=hunter2"]},
         "mine.yaml: logger.wandb.api_key: a secret would stand in the study and on its page; give "
         "logger.wandb.api_key=${oc.env:NAME}"),
        ({"only_in_trials": ["steps=4", "trainer.val_check_interval=0.5"]}, "be judged, as validation is every 0.5"),
        ({"only_in_trials": ["steps=4", "trainer.val_check_interval=null"]}, "not be judged, as validation is every"),
        ({"space": {"optim.betas": {"kind": "choice", "values": [deep(300), [0.9, 0.9]]}}}, "nested too deep"),
        ({"space": {"paths.run": {"kind": "choice", "values": ["a", "b"]}}}, "paths.run: are the trial's own"),
        ({"space": {"weights.captioning": {"kind": "float", "low": 0.1, "high": 2.0}}},
         "mine.yaml: weights.captioning: changes what val/loss is the sum of"),
        ({"overrides": ["evaluation=any"]}, "mine.yaml: evaluation: is for the winner"),
        ({"overrides": ["resume=runs/x"]}, "mine.yaml: resume: goes on with one run"),
        ({"overrides": ["optim.lr=0.1"]}, "mine.yaml: optim.lr: is searched, and set among the overrides too"),
        ({"only_in_trials": ["steps=150"]}, "the last of 150 steps would not be judged, as validation is every 100; "),
        ({"overrides": ["logger=[tensorboard]"]}, "mine.yaml: logger: a sweep reads metrics.csv"),
    ],
)  # fmt: skip
def test_a_key_that_no_trial_can_have_is_refused_before_the_first(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checked(**changed)
    assert expected in raised.value.problems[0]


def test_a_space_that_is_right_is_taken() -> None:
    checked()
    checked(overrides=["seed=7"])


def test_what_is_typed_stands_above_the_file() -> None:
    sweep = small(overrides=["a=1", "+b=2"], only_in_trials=["steps=5", "c=3"]).overridden(["b=4", "steps=7", "d=5"])
    assert sweep.overrides == ["a=1", "b=4", "d=5"]
    assert sweep.only_in_trials == ["c=3", "steps=7"]  # of trials alone, as it was there


def test_each_end_and_each_choice_is_tried_once() -> None:
    rows = list(small().tried())
    assert [row["b"] for row in rows] == [1, True, "text", [0.9, 0.98]]
    assert [row["a"] for row in rows] == [0.01, 1.0, 1.0, 1.0]


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
PLAIN = (
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
)


@settings(max_examples=200, deadline=None)
@given(PLAIN | st.lists(PLAIN, max_size=3))
def test_hydra_reads_back_the_value_that_was_written(value: Any) -> None:
    override = OverridesParser.create().parse_override(assigned("a.b", value))
    read_back = override.value()
    if isinstance(value, list):
        assert isinstance(read_back, list)
        read_back = [getattr(item, "text", item) for item in read_back]
    assert json.dumps(read_back) == json.dumps(value)
    assert not override.is_sweep_override()


def test_choices_that_python_takes_for_one_are_several() -> None:
    assert Choice(kind="choice", values=[1, 1.0, True, "1"]).labels == ["1", "1.0", "true", '"1"']
    assert Float(kind="float", low=1, high=2).ends == [1, 2]
    assert Int(kind="int", low=1, high=2).ends == [1, 2]
