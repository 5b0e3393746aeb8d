"""The winner's file gives the winner's configuration, whatever the trials were given."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmfusion import config
from mmfusion.sweep import winner
from mmfusion.sweep.result import Result, Tried
from mmfusion.sweep.space import Sweep

SPACE: dict[str, Any] = {
    "optim.lr": {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "optim.betas": {"kind": "choice", "values": [[0.9, 0.98], [0.8, 0.9]]},
    "scheduler": {"kind": "choice", "values": ["cosine", "constant"]},
    "model.decoder.depth": {"kind": "int", "low": 1, "high": 4},
}
VALUES = {"optim.lr": 1.2345678901234567e-05, "optim.betas": [0.8, 0.9], "scheduler": "constant",
          "model.decoder.depth": 3}  # fmt: skip


def result(folder: Path, overrides: list[str], values: dict[str, Any] = VALUES, **changed: Any) -> Result:
    """A sweep of one trial, done."""
    told = {"metric": "val/loss", "trials": 1, "space": {key: SPACE[key] for key in values}, "overrides": overrides}
    sweep = Sweep.model_validate({**told, "only_in_trials": ["steps=7"], **changed})
    one = Tried(0, "done", values, 2.5, None, 1, 7, 3.0, "", folder / "trials" / "000")
    return Result("mine", sweep, folder, [one], {})


def composed(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command that trains with the winner composes to; what stands before it is done."""
    *before, train = command.split(" && ")
    for one in before:
        program, *words = shlex.split(one)
        if program == "mkdir":
            Path(words[-1]).mkdir(parents=True, exist_ok=True)
        else:
            (Path(words[-1]) / Path(words[0]).name).write_bytes(Path(words[0]).read_bytes())
    words = shlex.split(train)
    assert words[:3] == ["mmfusion", "train", "--config-dir"]
    return config.raw(config.compose(words[4:], Path(words[3])))


def without_own(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in ("name", "paths")}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=quickstart", "seed=3", "steps=40"],
        ["model=small", "callbacks=[default,ema]", "callbacks.ema.decay=0.5"],
        ["~callbacks.speed", "objective=[captioning]", "+logger.csv.prefix='a, b'", "data.weights.tux-stamps=0.4"],
        ["trainer=ddp", "trainer.precision=bf16-mixed"],
        ["stage=finetune", "checkpoint=runs/x"],
        ["experiment=frozen_encoders", "checkpoint=runs/x", "data.root=${oc.env:HOME}"],
    ],
    ids=lambda given: " ".join(given) or "nothing",
)
def test_the_file_gives_the_configuration_of_the_best_trial(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, command = winner.write(result(tmp_path, overrides))
    tree = composed(command, monkeypatch)
    expected = config.raw(config.compose([*overrides, *(f"{key}={value}" for key, value in VALUES.items())]))
    assert without_own(tree) == without_own(expected)
    assert tree["name"] == "mine-best"
    assert tree["optim"]["lr"] == VALUES["optim.lr"]  # to the last bit
    assert tree["scheduler"]["_target_"].endswith("constant")
    assert tree["steps"] != 7  # of trials alone
    text = file.read_text()
    assert f"# Command:  {command}\n" in text


def test_with_a_tree_of_ones_own_the_file_is_copied_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "my conf"
    (own / "optim").mkdir(parents=True)
    (own / "optim" / "mine.yaml").write_text("defaults:\n  - adamw\n  - _self_\nweight_decay: 0.5\n")
    (own / "broken").symlink_to(own / "nowhere")  # what else is there is no matter
    (own / "mine.yaml").symlink_to(own / "nowhere.yaml")
    found = result(tmp_path / "sweep", ["optim=mine"], {"optim.lr": 0.5})
    _, command = winner.write(found, own)
    assert not (own / "experiment").exists()  # theirs: only told
    tree = composed(command, monkeypatch)
    assert (tree["optim"]["lr"], tree["optim"]["weight_decay"]) == (0.5, 0.5)


def test_the_file_says_how_good_and_of_how_many(tmp_path: Path) -> None:
    file, _ = winner.write(result(tmp_path, [], {"model.decoder.depth": 3}))
    text = file.read_text()
    assert "val/loss 2.5 (one seed), trial 0; the best of the" in text
    assert yaml.safe_load(text)["model"] == {"decoder": {"depth": 3}}
    assert "Trials had steps=7." in text
