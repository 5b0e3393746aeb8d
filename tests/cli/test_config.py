"""`mmfusion config`: print, check, list, write a schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmfusion.cli.main import main


def test_what_is_printed_is_what_a_run_would_keep_with_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "optim.lr=0.5", "--defaults"]) == 0
    (tmp_path / "all.yaml").write_text(text := capsys.readouterr().out)
    tree = OmegaConf.load(tmp_path / "all.yaml")
    assert tree.optim.lr == 0.5
    assert tree.paths.run.startswith("runs/quickstart/")
    said = {" ".join(line.split()) for line in text.splitlines()}
    assert f"run: {tree.paths.run} # this run : str length >= 1 or null" in said
    assert "lr: 0.5 # command line : float or Tensor" in said
    assert "# resume: null # signature : str or null" in said


def test_check_says_ok_or_each_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--check"]) == 0
    assert capsys.readouterr().out == "ok\n"
    assert main(["config", "--check", "optim.lrr=1", "steps=0"]) == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "mmfusion: optim.lrr: AdamW has no such argument; did you mean 'lr'?",
        "mmfusion: steps: must be greater than 0, not 0",
    ]


def test_list_shows_groups_with_their_options_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--list", "callbacks"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["callbacks", "*", "default"] in [words[:3] for words in shown]
    assert any(words[0] == "ema" and words[-1] == "callbacks=[default,ema]" for words in shown)
    assert main(["config", "--list", "callback"]) == 2
    assert "--list callback: no such group; did you mean 'callbacks'?" in capsys.readouterr().err


def test_a_list_is_as_wide_as_the_terminal_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["config", "--list"]) == 0
        assert columns - 10 < max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_the_schema_is_written_whole_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema", str(tmp_path / "s.json")]) == 0
    assert "yaml-language-server" in capsys.readouterr().out
    assert main(["config", "--schema"]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(capsys.readouterr().out)
    assert main(["config", "--schema", str(tmp_path / "nowhere" / "s.json")]) == 1


def test_a_misspelt_key_of_ones_own_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "callbacks").mkdir()
    node = f"mine:\n  _target_: {__name__}.Mine\n  colour: red\n"
    (tmp_path / "callbacks" / "mine.yaml").write_text(node)
    arguments = ["config", "--check", "--config-dir", str(tmp_path), "callbacks=[default,mine]"]
    assert main([*arguments, "callbacks.mine.colur=blue"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "mmfusion: callbacks.mine.colur: Mine has no such argument; did you mean 'colour'?" in error


class Mine:
    def __init__(self, *, colour: str) -> None: ...


def test_a_sweep_that_cannot_be_composed_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmfusion"])  # both are Hydra's way in
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert main(["train", "-m", "~paths"]) == 2
    assert capsys.readouterr().err == "mmfusion: hydra.sweep.dir: Interpolation key 'paths.runs' not found\n"
