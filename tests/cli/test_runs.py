"""`mmfusion runs` and `mmfusion compare` as typed: what is printed, and what bad input ends in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from mmfusion.cli.flags import STATES
from mmfusion.cli.main import main
from mmfusion.runs import energy
from mmfusion.runs.energy import Energy, Source, Spent
from mmfusion.runs.status import State
from tests.runs.tiny_runs import make, measured


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    rows = [measured(0.25, (0.15, 0.35)), measured(4.0, metric="median rank")]
    make(tmp_path / "runs" / "tiny" / "one", metrics=rows, losses=[3.0, 2.0])
    later = "2026-11-21T10:00:00+0000"
    make(tmp_path / "runs" / "tiny" / "two", metrics=[measured(0.5)], losses=[3.0, 1.0], began=later)
    return tmp_path / "runs"


def said(arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(arguments.split()) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_ls_is_what_runs_does_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said("runs", capsys)
    assert lines == said("runs ls runs", capsys)
    assert [line.split()[0] for line in lines[2:]] == ["tiny/two", "tiny/one"]
    assert lines[2].split()[1:3] == ["finished", "2/2"]
    assert all(len(line) <= 80 for line in lines)


def test_ls_json_holds_every_value(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads("\n".join(said("runs ls --json --sort val/loss --reverse", capsys)))
    assert [run["values"]["val/loss"]["value"] for run in found] == [2.0, 1.0]
    assert found[0]["values"]["naming/R@1"] == {"value": 0.25, "ci95": [0.15, 0.35], "n": 40}


def test_ls_json_is_json_whatever_was_measured(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "tiny" / "one" / "metrics.json").write_text(
        '[{"task": "t", "metric": "m", "value": NaN, "ci95": [0.5, Infinity]}]'
    )
    text = "\n".join(said("runs ls --json", capsys))
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found[1]["values"]["t/m"] == {"value": None, "ci95": [0.5, None], "n": None}


def test_best_ranks_by_the_metrics_own_direction(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said("runs best R@1", capsys)
    assert lines[0] == "naming/R@1, the highest first"
    assert [line.split()[0] for line in lines[2:4]] == ["tiny/two", "tiny/one"]
    assert "0.150 to 0.350" in lines[3]
    assert len(said("runs best val/loss --n 1", capsys)) == 3


def test_show_fits_a_screen_and_says_what_to_do_next(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "tiny" / "one" / "resume").mkdir()
    (root / "tiny" / "one" / "resume" / "step=2.ckpt").write_text("")
    lines = said("runs show runs/tiny/one", capsys)
    assert len(lines) < 25
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("val/loss  █▁  3.000 to 2.000") for line in lines)
    assert lines[-1] == "go on with it: mmfusion train resume=runs/tiny/one"


def test_energy_is_shown_and_listed_where_a_run_recorded_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not [line for line in said("runs show runs/tiny/one", capsys) if line.startswith("energy")]
    source = Source(kind="estimate", method="by hand")
    energy.keep(
        root / "tiny" / "one", Energy(training=Spent(joules={"cpu": 8.0}, samples=4), sources={"cpu": [source]})
    )
    (told,) = [line for line in said("runs show runs/tiny/one", capsys) if line.startswith("energy")]
    assert told.split(maxsplit=1)[1] == "8 J (an estimate), 2 J a sample trained"
    found = json.loads("\n".join(said("runs ls --json", capsys)))
    assert [run["joules"] for run in found] == [None, 8.0]
    said("compare runs/tiny/one runs/tiny/two --out both.html", capsys)
    page = Path("both.html").read_text()
    assert page.count("8 J (an estimate), 2 J a sample trained") == page.count("not recorded") == 1


def test_show_does_not_look_behind_a_link(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "far").mkdir()
    (root / "far" / "large.bin").write_bytes(b"x" * 100_000)
    run = root / "tiny" / "one"
    (run / "own").mkdir()
    for link in (run / "away", run / "own" / "away"):
        link.symlink_to(root / "far")
    text = "\n".join(said("runs show runs/tiny/one", capsys))
    assert "kB" not in text
    assert f"away/ {len(str(root / 'far'))} B" in text


STEERING = "\x1b[2J[bold]gone[/bold]\x9b"


@pytest.mark.parametrize(
    "command", ["runs show", "runs ls", "runs ls --metric", "runs ls --json", "runs best", "compare runs/tiny/one"]
)
def test_what_would_steer_a_terminal_is_not_printed(
    command: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**measured(0.25, (0.15, 0.35), metric=STEERING.replace("/", "")), "task": "task"}]
    run = make(
        root / STEERING.replace("/", ""),
        state="failed",
        message=STEERING,
        metrics=rows,
        config={STEERING: 1},
        data=STEERING,
    )
    (run / "environment.json").write_text(json.dumps({"command": f"mmfusion {STEERING}", "commit": STEERING}))
    (make(root / "\x1b[2Jdamaged") / "status.json").write_text("{")
    given = {"runs ls --metric": "task/" + rows[0]["metric"], "runs best": "task/" + rows[0]["metric"]}
    last = given.get(command, "runs" if command.startswith("runs ls") else str(run.relative_to(root.parent)))
    assert main([*command.split(), last]) == 0
    printed = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(printed.out + printed.err)
    assert "[bold]gone" in printed.out.replace("\n", "")


def test_suggested_commands_can_be_copied(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(root / "my run; rm", metrics=[measured(0.9, (0.8, 1.0))])
    (run / "checkpoint").mkdir()
    command = "mmfusion evaluate 'runs/my run; rm'"
    for given in (["runs", "show", str(run.relative_to(root.parent))], ["runs", "best", "R@1"]):
        assert main(given) == 0
        assert command in " ".join(capsys.readouterr().out.split())


def test_compare_prints_and_writes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said("compare runs/tiny/one runs/tiny/two --out page.html", capsys)
    assert lines[0] == "A  runs/tiny/one"
    assert any(line.startswith("naming/R@1") and "0.250" in line and "0.500" in line for line in lines)
    assert Path("page.html").stat().st_size > 5000
    assert len(list(Path().iterdir())) == 2  # no draft is left


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("runs ls nowhere", "nowhere: no such folder"),
        ("runs ls runs/tiny/one/empty", "no runs in it; start one with `mmfusion train`"),
        ("runs ls --sort nme", "nme: no such metric; did you mean 'name'?"),
        ("runs show nowhere", "nowhere: no such folder"),
        ("runs show runs", "runs: no run folder (it has no config.yaml); `mmfusion runs ls runs` looks below it"),
        ("runs best val/los", "val/los: no such metric; did you mean 'val/loss'?"),
        ("runs best R@1 --name nobody", "R@1: no such metric; these runs have none yet"),
        ("compare runs/tiny/one", "compare takes 2 to 6 runs, not 1"),
        ("compare runs/tiny/one runs", "runs: no run folder"),
        ("compare runs/tiny/one runs/tiny/two --out no/where.html", "--out no/where.html: cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments: str, expected: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "tiny" / "one" / "empty").mkdir()
    assert main(arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("mmfusion: ")
    assert expected in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("command", ["runs", "runs ls --json", "runs best val/loss"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("status.json", "{"), ("status.json", '{"pid": -5}'), ("metrics.csv", "step\n" + "9" * 200_000)],
)
def test_a_damaged_run_is_named_and_the_others_are_listed(
    command: str, name: str, content: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tiny" / "two" / name).write_text(content)
    assert main(command.split()) == 0
    printed = capsys.readouterr()
    assert "tiny/one" in printed.out
    assert printed.err.startswith(f"left out: runs/tiny/two/{name}: not ")


def test_every_state_can_be_asked_for() -> None:
    assert get_args(State) == STATES
