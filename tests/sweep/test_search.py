"""A sweep of stand-in runs: killed, stopped, pruned, failing, in parallel; nothing lost, nothing run twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfusion.runs.status import read_status
from mmfusion.sweep import bound, process, search
from mmfusion.sweep.process import Child
from mmfusion.sweep.result import Tried
from mmfusion.sweep.space import Sweep
from mmfusion.sweep.study import LOCK, Study, SweepError, alone
from tests.forked import Forked
from tests.sweep.small import SPACE, found, space, swept, told

PRUNED = {"pruner": {"kind": "median", "after_trials": 2}}


def starts(folder: Path) -> dict[str, list[int]]:
    """By run, the steps that its processes began behind: always the last that was saved, so that none is taken anew."""
    found: dict[str, list[int]] = {}
    for log in sorted(folder.glob("trials/*/*.done")):
        saved = 0
        for word, number, *_ in (line.split() for line in log.read_text().splitlines()):
            if word == "begin":
                assert int(number) == saved
                found.setdefault(f"{log.parent.name}/{log.stem}", []).append(saved)
            saved = int(number)
    return found


def ended(folder: Path) -> list[int]:
    """How often each run came to its end."""
    return [log.read_text().count("end ") for log in sorted(folder.glob("trials/*/*.done"))]


def killed(folder: Path, sweep: Sweep, trial: int) -> None:
    """Start a sweep, and kill -9 it when a run of this trial or a later one has saved a step."""
    leading = Forked(swept, folder, sweep, folder=folder.parent)
    while leading.poll() is None and not any(int(p.parts[-4]) >= trial for p in folder.glob("trials/*/*/resume/*")):
        time.sleep(0.002)
    os.kill(leading.pid, signal.SIGKILL)
    assert leading.ended()[0] == -signal.SIGKILL


def test_killed_twice_it_has_the_trials_of_one_that_never_was(tmp_path: Path) -> None:
    """Suggestions, prunings, values and the one failure: the same; no trial lost, none trained to its end twice."""
    sweep = space(trials=7, **PRUNED, overrides=["pause=0.02", "fail=2"])
    swept(tmp_path / "whole", sweep)
    for trial in (0, 4):
        killed(tmp_path / "cut", sweep, trial)
    swept(tmp_path / "cut", sweep)
    whole, cut = found(tmp_path / "whole", sweep), found(tmp_path / "cut", sweep)
    assert told(cut) == told(whole)
    assert [one.number for one in cut] == list(range(7))
    assert {one.state for one in cut} == {"done", "pruned", "failed"}
    assert (cut[2].state, cut[2].message) == ("failed", "made to fail")
    assert max(ended(tmp_path / "cut")) == 1
    assert len(starts(tmp_path / "cut")) == 7


def test_it_does_not_matter_when_it_looks(tmp_path: Path) -> None:
    """Runs that end before the first look are pruned where slower ones would have been."""
    fast, slow = space(trials=5, **PRUNED), space(trials=5, **PRUNED, overrides=["pause=0.02"])
    swept(tmp_path / "fast", fast, poll_s=0.2)
    swept(tmp_path / "slow", slow, poll_s=0.005)
    assert told(found(tmp_path / "fast", fast)) == told(found(tmp_path / "slow", slow))
    assert "pruned" in {one.state for one in found(tmp_path / "slow", slow)}
    assert sum(ended(tmp_path / "slow")) < 5  # stopped, not only called so


def test_the_runs_of_a_killed_sweep_end_with_it(tmp_path: Path) -> None:
    sweep = space(trials=1, overrides=["pause=0.05"], only_in_trials=["steps=10000"])
    killed(tmp_path / "cut", sweep, 0)
    run = tmp_path / "cut" / "trials" / "000" / "seed-0"
    until = time.monotonic() + 10
    while read_status(run).state != "stopped" and time.monotonic() < until:
        time.sleep(0.01)
    assert read_status(run).state == "stopped"  # behind a step, not killed
    assert list((run / "resume").glob("*.ckpt"))


def test_a_run_that_still_ends_is_waited_for(tmp_path: Path) -> None:
    """One of an earlier sweep that did not hear of its end: nobody else begins in its folder."""
    sweep = space(trials=1, overrides=["pause=0.1"], only_in_trials=["steps=10"])
    killed(tmp_path / "cut", sweep, 0)
    swept(tmp_path / "cut", sweep)  # at once, while the run ends
    (one,) = found(tmp_path / "cut", sweep)
    assert one.state == "done"
    assert ended(tmp_path / "cut") == [1]
    (begun,) = starts(tmp_path / "cut").values()
    assert len(begun) == 2  # gone on with
    assert begun[1] > 0


def test_repeats_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    """The stand-in's loss is 100 a + seed + 10 / 6 at its last step, so over three seeds: 100 a + 1 + 10 / 6, sd 1."""
    sweep = space(trials=2, repeats=3)
    swept(tmp_path / "sweep", sweep)
    for one in found(tmp_path / "sweep", sweep):
        assert one.value == pytest.approx(100 * one.values["a"] + 1 + 10 / 6)
        assert one.sd == pytest.approx(1.0)
        assert one.n == 3
    assert list(starts(tmp_path / "sweep")) == [f"00{trial}/seed-{seed}" for trial in (0, 1) for seed in (0, 1, 2)]


def test_two_at_once_share_the_cores_and_no_trial(tmp_path: Path) -> None:
    sweep = space(trials=6, overrides=["pause=0.02"])
    heard: list[Tried] = []
    swept(tmp_path / "sweep", sweep, jobs=2, told=heard)
    assert sorted(one.number for one in heard) == list(range(6))
    assert ended(tmp_path / "sweep") == [1] * 6
    spans = []
    for log in (tmp_path / "sweep").glob("trials/*/*.done"):
        begin, *_, end = log.read_text().splitlines()
        assert begin.endswith("threads 2" if "OMP_NUM_THREADS" not in os.environ else "threads 1")
        spans.append((float(begin.split()[2]), float(end.split()[2])))
    together = [sum(low <= at < high for low, high in spans) for at, _ in spans]
    assert max(together) == 2
    assert len({json.dumps(dict(one.values)) for one in heard}) == 6


@pytest.mark.parametrize(
    ("cores", "jobs", "ranks", "threads"), [(8, 2, 1, 4), (8, 2, 2, 2), (16, 3, 1, 5), (2, 1, 4, 1)]
)
def test_together_runs_have_no_more_threads_than_cores(
    cores: int, jobs: int, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in process.THREADS:
        monkeypatch.delenv(name, raising=False)
    assert set(process.shared(cores, jobs, ranks).values()) == {str(threads)}


def test_each_run_has_gpus_of_its_own_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = [process.shared(8, 2, 2, slot, devices=4)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)]
    assert given == ["0,1", "2,3"]
    assert "CUDA_VISIBLE_DEVICES" not in process.shared(8, 2, 2, 0, devices=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6,7")  # as SLURM does
    given = [process.shared(8, 2, 2, slot, devices=4)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)]
    assert given == ["4,5", "GPU-6,7"]


def test_where_all_trials_fail_it_ends_and_begins_anew_with_what_was_mended(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (folder / "notes").mkdir(parents=True)
    sweep = space(trials=9, overrides=["steps=none"], only_in_trials=[])
    with pytest.raises(
        SweepError, match=r"trials/002: all trials fail, this one with: .*; mend that, then give the same"
    ):
        swept(folder, sweep)
    assert len(list(folder.glob("trials/*"))) == search.HOPELESS  # what they said can be read
    (folder / "trials" / "mine").mkdir()
    sweep = space(trials=2)  # of another space, too
    study = Study(folder, sweep)
    assert study.renewed == search.HOPELESS
    assert study.trials() == []
    study.close()
    assert (folder / "notes").exists()
    assert [path.name for path in (folder / "trials").iterdir()] == ["mine"]  # none of the sweep's
    swept(folder, sweep)
    assert [one.state for one in found(folder, sweep)] == ["done", "done"]


def test_a_metric_that_no_run_logs_ends_it(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"val/los is not among .*did you mean 'val/loss'\?; there are: val/loss"):
        swept(tmp_path / "sweep", space(metric="val/los"))


def test_a_trial_that_lacks_the_metric_fails_alone(tmp_path: Path) -> None:
    sweep = space(trials=3, overrides=["blind=1"])
    swept(tmp_path / "sweep", sweep)
    assert [one.state for one in found(tmp_path / "sweep", sweep)] == ["done", "failed", "done"]


def test_killed_between_a_trials_value_and_its_end_the_value_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = space(trials=2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "cut", sweep)
    monkeypatch.undo()
    swept(tmp_path / "cut", sweep)
    swept(tmp_path / "whole", sweep)
    assert told(found(tmp_path / "cut", sweep)) == told(found(tmp_path / "whole", sweep))
    assert ended(tmp_path / "cut") == [1, 1]  # no run of another seed


def test_at_its_last_step_a_trial_is_done_unless_other_repeats_would_follow(tmp_path: Path) -> None:
    short = {"trials": 4, "only_in_trials": ["steps=2"], "pruner": {"kind": "median", "after_trials": 1}}
    swept(tmp_path / "once", space(**short), steps=2)
    assert {one.state for one in found(tmp_path / "once", space(**short))} == {"done"}
    twice = space(**short, repeats=2)
    swept(tmp_path / "twice", twice, steps=2)
    tried = found(tmp_path / "twice", twice)
    assert {one.state for one in tried} == {"done", "pruned"}
    runs = [len(list((tmp_path / "twice" / "trials" / f"{one.number:03}").glob("seed-*/"))) for one in tried]
    assert runs == [2 if one.state == "done" else 1 for one in tried]


def test_trials_are_compared_by_their_first_repeat(tmp_path: Path) -> None:
    """The second seed's loss is higher by one, at every step."""
    sweep = space(trials=1, repeats=2, space={"b": SPACE["b"]}, overrides=["a=0.5"])
    swept(tmp_path / "sweep", sweep)
    study = Study(tmp_path / "sweep", sweep)
    assert study.trials()[0].intermediate_values == {step: 50 + 10 / step for step in (2, 4, 6)}
    assert study.trials()[0].value == 50 + 0.5 + 10 / 6
    study.close()


def test_a_run_that_keeps_its_best_weights_is_worth_what_these_are(tmp_path: Path) -> None:
    """Its loss turns behind step 4 of 6."""
    for metric, expected in (("val/loss", 50 + 10 / 4), ("val/step", 4.0)):
        one = {"kind": "choice", "values": [1, 2]}
        sweep = space(trials=1, metric=metric, direction="maximize", space={"b": one}, overrides=["a=0.5", "turn=4"])
        swept(tmp_path / metric, sweep, best=True)
        assert found(tmp_path / metric, sweep)[0].value == expected


def test_runs_that_a_study_does_not_know_are_left_as_they_are(tmp_path: Path) -> None:
    folder, sweep = tmp_path / "sweep", space(trials=1)
    swept(folder, sweep)
    older = (folder / "study.sqlite").read_bytes()
    swept(folder, space(trials=2))
    (folder / "study.sqlite").write_bytes(older)
    with pytest.raises(SweepError, match=r"trials/001: is of a trial that .* does not know; bring a newer copy"):
        swept(folder, space(trials=3))
    (folder / "study.sqlite").unlink()
    with pytest.raises(SweepError, match=r"trials/00\d: is there, but .*study.sqlite is not"):
        swept(folder, space(trials=3, seed=5))
    assert len(list(folder.glob("trials/*/seed-0/report.html"))) == 2


def test_a_run_that_somebody_else_ends_fails_its_trial_alone(tmp_path: Path) -> None:
    sweep = space(trials=2, overrides=["pause=0.05"])
    leading = Forked(swept, tmp_path / "sweep", sweep, folder=tmp_path)
    run = tmp_path / "sweep" / "trials" / "000" / "seed-0"
    while not (run / "metrics.csv").exists() or not (run / "status.json").exists():
        time.sleep(0.005)
    os.kill(read_status(run).pid, signal.SIGKILL)
    assert leading.ended()[0] == 0
    first, second = found(tmp_path / "sweep", sweep)
    assert (first.state, first.message, second.state) == ("failed", "ended by signal 9", "done")


def test_only_one_process_works_on_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sweep"
    with alone(folder):
        for _ in range(2):  # who is refused takes nothing away
            with pytest.raises(SweepError, match="another process works on this sweep"), alone(folder):
                pass
        assert (folder / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with alone(folder):
        (folder / "kept").touch()
    assert (folder / "kept").exists()


def test_what_is_left_to_go_on_with_is_removed_when_a_trial_is_over(tmp_path: Path) -> None:
    sweep = space(trials=4, **PRUNED)
    swept(tmp_path / "sweep", sweep)
    assert len(list((tmp_path / "sweep").glob("trials/*/seed-0/metrics.csv"))) == 4
    assert not list((tmp_path / "sweep").glob("trials/*/seed-0/resume"))


def test_a_child_whose_parent_is_gone_already_does_not_begin(tmp_path: Path) -> None:
    made = tmp_path / "made"
    line, other = os.pipe()
    os.close(other)
    command = [sys.executable, "-I", "-S", bound.__file__, str(line), "/usr/bin/env", "touch", str(made)]
    assert subprocess.run(command, pass_fds=[line]).returncode == 143
    os.close(line)
    assert not made.exists()


@pytest.mark.parametrize(("does", "status"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
def test_a_child_ends_as_its_command_does(does: str, status: int, tmp_path: Path) -> None:
    assert Child(["/bin/sh", "-c", does], log=tmp_path / "log").wait() == status


def test_a_child_is_waited_for_until_its_end(tmp_path: Path) -> None:
    child = Child(["/bin/sh", "-c", "trap 'echo heard; exit 7' TERM; echo ready; while :; do sleep 0.01; done"],
                  log=tmp_path / "log")  # fmt: skip
    while not (tmp_path / "log").read_text():
        time.sleep(0.01)
    child.stop()
    child.end()  # asks no second time
    assert child.poll() == 7
    assert (tmp_path / "log").read_text() == "ready\nheard\n"


def leads(log: Path) -> None:
    Child(["/bin/sh", "-c", "trap 'echo heard; exit 7' TERM; echo ready; while :; do sleep 0.01; done"], log=log).wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_who_waits_for_a_child_and_is_ended_ends_it(how: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    leading = Forked(leads, log, folder=tmp_path)
    while not log.exists() or not log.read_text():
        time.sleep(0.005)
    os.kill(leading.pid, how)
    leading.ended()
    until = time.monotonic() + 10
    while "heard" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    assert log.read_text() == "ready\nheard\n"  # once


def test_heartbeats_stand_in_the_file(tmp_path: Path) -> None:
    sweep = space(trials=1)
    swept(tmp_path / "sweep", sweep)
    with sqlite3.connect(tmp_path / "sweep" / "study.sqlite") as base:
        assert base.execute("SELECT count(*) FROM trial_heartbeats").fetchone() == (1,)
