"""Runs read from their folders: what is found, what is left out and said so, how they are ordered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmfusion import runs
from mmfusion.runs import choosing, listing, words
from tests.runs.tiny_runs import make, measured


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Three runs, one of a sweep and one that goes on from another; a folder of something else, a damaged run."""
    root = tmp_path / "runs"
    make(root / "first" / "a", began="2026-11-20T10:00:00+0000", losses=[3.0, 2.5], metrics=[measured(0.2)])
    make(
        root / "sweep" / "time" / "0",
        began="2026-11-21T10:00:00+0200",
        losses=[3.0, 1.5],
        metrics=[measured(0.4, (0.3, 0.5)), measured(7.0, metric="median rank")],
        config={"name": "sweep"},
    )
    last = make(
        root / "last",
        began="2026-11-22T10:00:00+0000",
        losses=[3.0, 2.0, 1.8],
        metrics=[measured(0.3), measured(3.0, metric="median rank")],
        stage="finetune",
        state="failed",
    )
    (last / "checkpoint").mkdir()
    parent = {"name": "runs/first/a/checkpoint", "sha256": "0"}
    (last / "checkpoint" / "lineage.json").write_text(json.dumps({"parents": [parent], "data": {"fingerprint": "e"}}))
    (last / "checkpoint" / "config.yaml").write_text("{}")  # a checkpoint is no run
    (root / "other" / "deep").mkdir(parents=True)
    (root / "other" / "deep" / "notes.txt").write_text("mine")
    (make(root / "broken") / "metrics.json").write_text("[{")
    (root / "empty").mkdir()
    return root


def names(found: list[runs.Run], root: Path) -> list[str]:
    return [run.folder.relative_to(root).as_posix() for run in found]


def test_runs_are_found_newest_first_and_what_is_none_is_named(several: Path) -> None:
    found, problems = listing.read_all(several, logs=True)
    assert names(found, several) == ["last", "sweep/time/0", "first/a"]
    assert len(problems) == 2
    assert problems[0] == f"{several / 'other'}: no run in it"
    assert problems[1].startswith(f"{several / 'broken' / 'metrics.json'}: not as a run writes it")


def test_a_run_says_what_its_folder_holds(several: Path) -> None:
    run = runs.read(several / "last")
    assert (run.name, run.status.stage, run.status.state, run.step, run.planned) == ("tiny", "finetune", "failed", 3, 3)
    assert (run.parents, run.data) == (["runs/first/a/checkpoint"], "e")
    assert run.value("val/loss") == 1.8
    assert list(run.values) == ["val/loss", "naming/R@1", "naming/median rank"]
    assert run.as_json()["values"]["naming/R@1"] == {"value": 0.3, "ci95": None, "n": 40}
    assert runs.read(several / "first" / "a").data == "f" * 64  # its heartbeat's, as long as there is no checkpoint


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("began", ["last", "sweep/time/0", "first/a"]),
        ("name", ["sweep/time/0", "last", "first/a"]),
        ("steps", ["last", "sweep/time/0", "first/a"]),
        ("val/loss", ["sweep/time/0", "last", "first/a"]),  # the lowest first
        ("naming/R@1", ["sweep/time/0", "last", "first/a"]),  # the highest
        ("R@1", ["sweep/time/0", "last", "first/a"]),
        ("median rank", ["last", "sweep/time/0", "first/a"]),  # the lowest; who has none comes last
    ],
)
def test_orders_by_hand(key: str, expected: list[str], several: Path) -> None:
    found, _ = listing.read_all(several, logs=True)
    assert names(choosing.ordered(found, key), several) == expected


def test_reversed_the_runs_without_the_metric_stay_last(several: Path) -> None:
    found, _ = listing.read_all(several, logs=True)
    order = names(choosing.ordered(found, "median rank", reverse=True), several)
    assert order == ["sweep/time/0", "last", "first/a"]


@pytest.mark.parametrize(
    ("state", "name", "stage", "expected"),
    [
        ("failed", None, None, ["last"]),
        (None, "sw*", None, ["sweep/time/0"]),
        (None, "*/first/*", None, ["first/a"]),
        (None, "tiny", None, ["last", "first/a"]),
        (None, None, "finetune", ["last"]),
        ("failed", "sweep", None, []),
    ],
)
def test_filters(state: str | None, name: str | None, stage: str | None, expected: list[str], several: Path) -> None:
    found, _ = listing.read_all(several, logs=True)
    assert names(choosing.chosen(found, state=state, name=name, stage=stage), several) == expected


def test_an_unknown_metric_names_the_near_one_and_all_there_are(several: Path) -> None:
    found, _ = listing.read_all(several, logs=True)
    with pytest.raises(runs.RunError) as error:
        choosing.metric_named(found, "naming/R@2")
    assert str(error.value) == (
        "naming/R@2: no such metric; did you mean 'naming/R@1'?; there are: val/loss, naming/R@1, naming/median rank"
    )


def test_a_metric_that_two_tasks_have_must_say_which(tmp_path: Path) -> None:
    make(tmp_path / "a", metrics=[measured(0.2), {**measured(0.1), "task": "hearing"}])
    with pytest.raises(runs.RunError, match="R@1: several tasks have it; say which: naming/R@1, hearing/R@1"):
        choosing.metric_named(listing.read_all(tmp_path, logs=True)[0], "R@1")


def test_a_run_of_a_version_without_heartbeats_is_read_from_its_log(tmp_path: Path) -> None:
    run = make(tmp_path / "run", losses=[3.0, 2.0, 1.0])
    (run / "status.json").unlink()
    (run / "report.html").write_text("")
    old = runs.read(run)
    assert (old.status.state, old.step, old.value("val/loss"), words.took(old)) == ("finished", 3, 1.0, "?")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("config.yaml", "x: !!python/object/apply:os.system [touch ran]"),
        ("config.yaml", "name: " + "[" * 900),
        ("config.yaml", "name: &a [x, x]\nother: [*a, *a]"),  # ten such lines are a billion nodes
        ("config.yaml", "name: " + "x" * 1_000_001),
        ("environment.json", '{"cores": "many"}'),
        ("metrics.json", '[{"task": "t", "metric": "m", "value": "high"}]'),
        ("status.json", "null"),
        ("status.json", '{"state": "running", "pid": -5}'),
        ("status.json", '{"state": "running", "pid": 99999999999999999999}'),
        ("metrics.csv", "step,val/loss\n" + "9" * 200_000),
        ("energy.json", '{"training": {"joules": {"cpu": -1}}}'),
        ("energy.json", '{"sources": {"cpu": [{"kind": "rumour", "method": "heard"}]}}'),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(runs.RunError) as error:
        _ = runs.read(run).curves
    assert str(error.value).startswith(f"{run / name}: not ")
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


def test_a_name_that_is_no_text_is_none(tmp_path: Path) -> None:
    assert runs.read(make(tmp_path / "run", config={"name": ["x"] * 1000})).name == "?"


def test_steps_that_are_none_and_cells_beyond_the_columns_are_left_out(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / "status.json").unlink()
    log = "step,val/loss\n1e400,9\nnan,9\nx,9\n0,3.0,9,9\n1,2.0\n"
    (run / "metrics.csv").write_text(log)
    old = runs.read(run)
    assert (old.curves, old.step) == ({"val/loss": ([0.0, 1.0], [3.0, 2.0])}, 2)
    runs.set_history_aside(run, until=1)
    assert runs.read(run).curves == {"val/loss": ([0.0], [3.0])}


def test_history_that_was_being_brought_back_is_not_doubled(tmp_path: Path) -> None:
    run = make(tmp_path / "run", losses=[])
    before, after = "step,val/loss,lr\n0,3.0,\n0,,0.1\n1,2.0,\n", "step,lr,val/loss\n0,,3.0\n0,0.1,\n1,,1.9\n2,,1.0\n"
    (run / "metrics.before.csv").write_text(before)
    (run / "metrics.csv").write_text(after)
    expected = {"val/loss": ([0.0, 1.0, 2.0], [3.0, 1.9, 1.0]), "lr": ([0.0], [0.1])}
    assert runs.read(run).curves == expected
    runs.bring_history_back(run)
    assert runs.read(run).curves == expected
    assert len((run / "metrics.csv").read_text().splitlines()) == 5


def test_half_a_line_at_a_logs_end_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path / "run", losses=[3.0, 2.0])
    with (run / "metrics.csv").open("a") as file:
        file.write("2,1.e")
    (run / "metrics.before.csv").write_text("step,val/loss\n-1,4.0\n")  # a run that went on
    assert runs.read(run).curves == {"val/loss": ([-1.0, 0.0, 1.0], [4.0, 3.0, 2.0])}


def test_a_sparkline_by_hand() -> None:
    assert words.sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇██"
    assert words.sparkline([1, float("nan"), 1]) == "▁ ▁"
    assert words.sparkline([0.0] * 50 + [1.0] * 50, width=4) == "▁▁██"
    assert words.sparkline([]) == ""


def test_durations_and_sizes_by_hand() -> None:
    assert [words.age(s) for s in (0, 119, 120, 5400, 90000)] == ["0 s", "119 s", "2 min", "1.5 h", "1.0 d"]
    assert [words.size(n) for n in (0, 999, 1500, 18_300_000)] == ["0 B", "999 B", "1.5 kB", "18.3 MB"]
