"""`mmfusion sweep`: one real sweep from its file to its winner, and what is said where it cannot begin."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmfusion import config
from mmfusion.cli import sweep as verb
from mmfusion.cli.main import main
from mmfusion.runs import read
from mmfusion.sweep.study import FILE
from mmfusion.sweep.trial import How
from tests.cli.trained import as_typed
from tests.forked import Forked
from tests.sweep import small

OWN = """\
# Few steps of the quickstart's model.
metric: val/loss
trials: 2
pruner: {kind: median, after_trials: 1}
only_in_trials:
  - steps=4
  - data.batch_size=8
  - data.workers=0
  - trainer.val_check_interval=2
  - trainer.limit_val_batches=1
  - callbacks.resume.every_n_train_steps=1
  - ~callbacks.speed
space:
  optim.lr: {kind: float, low: 1.0e-4, high: 1.0e-2, log: true}
  scheduler: {kind: choice, values: [cosine, constant]}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A configuration tree with the sweep `mine`."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(OWN)
    return tmp_path / "conf"


def typed(own: Path, folder: Path, *more: str) -> list[str]:
    return ["sweep", "mine", "--config-dir", str(own), "--folder", str(folder), *more]


def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the stand-in, which end at once."""
    how = verb._how

    def with_stub(folder: Path, trees: Sequence[dict[str, Any]], where: Path | None) -> How:
        program = [sys.executable, "-S", str(small.STUB)]
        return dataclasses.replace(how(folder, trees, where), program=program, more=["a=0.5"])

    monkeypatch.setattr(verb, "_how", with_stub)


@pytest.mark.slow  # two processes that train
def test_a_real_sweep_stopped_and_gone_on_with_ends_in_a_winner_that_trains(
    own: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in its first trial: the run saves; the same command goes on with it."""
    folder, data = tmp_path / "sweep", [f"data.root={few}", f"data.tokenizer={few}/tokenizer/tokenizer.model"]
    leading = Forked(as_typed, typed(own, folder, "--trials", "1", *data, "steps=8"), folder=tmp_path)
    run = folder / "trials" / "000" / "seed-0"
    while leading.poll() is None and not list((run / "resume").glob("step=*.ckpt")):
        time.sleep(0.02)
    os.kill(leading.pid, signal.SIGTERM)
    status, _, error = leading.ended()
    assert status == 143
    again = re.findall(r"^go on with: (.*)$", error, re.MULTILINE)[0]
    assert read(run).status.state == "stopped"
    assert main(shlex.split(again)[1:]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 trials are there, 1 to be gone on with" in out
    assert read(run).status.state == "finished"
    assert (folder / "trials" / "000" / "seed-0.log").read_text().count("run folder ") == 2
    assert (folder / "sweep.html").stat().st_size > 0
    command = re.findall(r"^train it +.*(mmfusion train .*)$", out, re.MULTILINE)[0]
    words = shlex.split(command)
    assert words[4] == "experiment=mine-best"
    tree = config.compose(["experiment=mine-best"], folder / "conf")
    assert tree.optim.lr == read(run).config["optim"]["lr"]
    assert tree.steps == 500  # the short ones are of trials alone


def test_one_that_has_all_its_trials_says_so_and_shows_them_again(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    for expected in ("sweep folder", "its 2 trials are there already; go on to more with --trials 12"):
        assert main(typed(own, tmp_path / "sweep")) == 0
        out = capsys.readouterr().out
        assert expected in out
        assert "train it" in out
    assert main(typed(own, tmp_path / "sweep", "steps=6")) == 1
    assert "is of another space (only_in_trials: " in capsys.readouterr().err
    (tmp_path / "sweep" / FILE).write_bytes(b"no database" * 400)
    assert main(typed(own, tmp_path / "sweep")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mmfusion: {tmp_path}/sweep/{FILE}: is damaged (file is not a database); bring its copy")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (
            ["sweep", "quikstart"],
            2,
            "quikstart: no such sweep; did you mean 'quickstart'?; there are: mine, quickstart",
        ),
        (["sweep", "mine", "optim.lrr=1"], 2, "mine.yaml: optim.lrr: AdamW has no such argument; did you mean 'lr'?"),
        (["sweep", "mine", "optim.lr=1"], 2, "optim.lr: is searched, and set among the overrides too; leave one out"),
        (["sweep", "mine", "seed=0,1"], 2, "seed=0,1: several values"),
        (
            ["sweep", "mine", "paths.runs=x"],
            2,
            "paths.runs: are the trial's own; say where all of them go with --folder",
        ),
        (["sweep", "mine", "--folder", "/proc/no"], 1, "/proc/no: cannot write there"),
        (
            ["train", "sweep=quickstart"],
            2,
            "sweep=quickstart: is no part of a run; search it with: mmfusion sweep quick",
        ),
    ],
)
def test_what_cannot_begin_is_one_line_and_leaves_nothing(
    arguments: list[str], status: int, expected: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--config-dir", "conf"]) == status
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_a_metric_that_is_never_logged_ends_it_and_the_mended_one_begins_anew(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    (own / "sweep" / "mine.yaml").write_text(OWN.replace("val/loss", "val/los"))
    assert main(typed(own, tmp_path / "sweep")) == 1
    error = capsys.readouterr().err
    assert "metric: val/los is not among what it logs; did you mean 'val/loss'?" in error
    assert len(error.splitlines()) == 1
    (own / "sweep" / "mine.yaml").write_text(OWN)
    assert main(typed(own, tmp_path / "sweep")) == 0
    assert "its 2 trials all failed; it begins anew" in capsys.readouterr().out


def test_a_file_that_its_trials_were_configured_by_and_that_was_changed_is_seen(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    (own / "experiment").mkdir()
    experiment = own / "experiment" / "deep.yaml"
    experiment.write_text("# @package _global_\nname: deep\nmodel: {decoder: {depth: 1}}\n")
    assert main(typed(own, tmp_path / "sweep", "experiment=deep")) == 0
    experiment.write_text(experiment.read_text().replace("1", "2"))
    capsys.readouterr()
    assert main(typed(own, tmp_path / "sweep", "experiment=deep", "--trials", "3")) == 1
    assert "its trials were not configured as they would be now: model; take another" in capsys.readouterr().err


def test_no_more_runs_at_once_than_cores(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(typed(own, tmp_path / "sweep", "--jobs", "4096"))
    assert "--jobs 4096: wants 4096 cores, of " in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_dry_run_makes_nothing(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(own, tmp_path / "sweep", "--dry-run", "data.batch_size=4")) == 0
    out = capsys.readouterr().out
    first = shlex.split(re.findall(r"^the first would be: (.*)$", out, re.MULTILINE)[0])
    assert first[:2] == ["mmfusion", "train"]
    assert main(["config", "--check", *first[2:]]) == 0
    assert not (tmp_path / "sweep").exists()
