"""The heartbeat: what a run is in, told from its folder alone, however it ended."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from mmfusion import runs
from mmfusion.cli.main import main
from mmfusion.runs import status
from mmfusion.runs.status import Status, read_status
from tests.forked import Forked
from tests.runs.tiny_runs import make

SMALL = ["data.batch_size=8", "data.workers=0", "evaluation=none", "trainer.limit_val_batches=1", "~callbacks.speed"]


def train_twice(run: Path, arguments: list[str]) -> None:
    main(["train", f"paths.run={run}", *arguments])
    main(["train", f"resume={run}"])


def wait_for_a_step(training: Forked, run: Path, beyond: int) -> Status:
    while training.poll() is None:
        if (run / "status.json").exists() and (found := read_status(run)).step > beyond:
            return found
        time.sleep(0.02)
    raise AssertionError(training.written())


def test_a_process_that_trains_is_running_stopped_and_killed(tmp_path: Path) -> None:
    """A real process: SIGTERM, then, after the run went on, kill -9."""
    run = tmp_path / "run"
    often = ["callbacks.heartbeat.every_s=0", "callbacks.resume.every_n_train_steps=50"]
    training = Forked(train_twice, run, ["steps=1000", *SMALL, *often], folder=tmp_path)
    found = wait_for_a_step(training, run, beyond=0)
    assert (found.state, found.pid, found.steps) == ("running", training.pid, 1000)
    assert found.step_s
    with pytest.raises(runs.RunError, match=rf"is running \(process {training.pid} on .*\); wait for it, or stop it"):
        runs.refuse_running(run)
    os.kill(training.pid, signal.SIGTERM)
    while (stopped := read_status(run)).state == "running":
        time.sleep(0.001)
    assert (stopped.state, stopped.message) == ("stopped", None)
    assert stopped.step == runs.step_of(runs.resume_points(run)[0])
    went_on = wait_for_a_step(training, run, beyond=stopped.step)
    assert (went_on.state, went_on.spent_s) == ("running", pytest.approx(stopped.seconds))
    os.kill(training.pid, signal.SIGKILL)
    while read_status(run).state == "running":  # a zombie, until its parent looks
        time.sleep(0.001)
    assert read_status(run).state == "killed"
    assert training.ended()[0] == -signal.SIGKILL
    assert read_status(run).state == "killed"


class Trouble(Callback):
    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if batch_idx == 2:
            raise ValueError("the disk\nis gone")


def test_a_run_that_raises_is_failed_with_its_message_and_one_that_goes_on_finished(tmp_path: Path) -> None:
    run, trouble = tmp_path / "run", f"{__name__}.Trouble"
    assert main(["train", f"paths.run={run}", "steps=3", *SMALL, f"+callbacks.x._target_={trouble}"]) == 1
    failed = read_status(run)
    assert (failed.state, failed.step, failed.message) == ("failed", 2, "the disk is gone")
    tree = (run / "config.yaml").read_text().replace(trouble, "lightning.pytorch.callbacks.Callback")
    (run / "config.yaml").write_text(tree)
    assert main(["train", f"resume={run}"]) == 0
    finished = read_status(run)
    assert (finished.state, finished.step, finished.message) == ("finished", 3, None)
    assert finished.spent_s == pytest.approx(failed.seconds)
    lineage = json.loads((run / "checkpoint" / "lineage.json").read_text())
    assert finished.data == lineage["data"]["fingerprint"]
    written = (run / "status.json").read_bytes()
    assert main(["train", f"resume={run}"]) == 0
    assert (run / "status.json").read_bytes() == written  # there was nothing to do


def beat(folder: Path, ago: float = 0.0, **changes: object) -> Path:
    """The heartbeat of this process so many seconds ago, with changes."""
    facts = {"state": "running", "time": time.time() - ago, **status._here(), **changes}
    (folder / "status.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "running"),
        ({"state": "evaluating"}, "evaluating"),
        ({"time": 0.0}, "running"),  # a process that lives may be in one long step
        ({"started": 1.0}, "killed"),  # another process has its number now
        ({"pid": 2**22 + 1}, "killed"),  # more than the kernel gives
        ({"place": "elsewhere"}, "running"),
        ({"place": "elsewhere", "ago": 240}, "running"),
        ({"place": "elsewhere", "ago": 301}, "killed"),
        ({"state": "stopped", "pid": 2**22 + 1}, "stopped"),
    ],
)
def test_a_heartbeat_is_believed_while_its_process_can_live(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert read_status(beat(tmp_path, **changes)).state == expected


def test_a_folder_without_heartbeat(tmp_path: Path) -> None:
    assert read_status(tmp_path).state == "unknown"
    (tmp_path / "report.html").write_text("")  # of a version that wrote none
    assert read_status(tmp_path).state == "finished"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "dead"}', '{"step": "x"}', "[" * 10_000, "\xff"])
def test_a_damaged_heartbeat_is_one_line_and_written_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(content, encoding="latin-1")
    with pytest.raises(runs.RunError, match=r"status\.json: not as a run writes it") as error:
        read_status(tmp_path)
    assert len(str(error.value).splitlines()) == 1
    runs.mark(tmp_path, "running", step=1)
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 1


def test_marks_add_up_and_secrets_are_left_out(tmp_path: Path) -> None:
    runs.mark(tmp_path, "running", step=1, metrics={"train/loss": 2.0, "val/loss": 3.0})
    runs.mark(tmp_path, step=2, metrics={"train/loss": 1.0})
    runs.mark(tmp_path, "failed", message="no: api_key=12345678")
    found = read_status(tmp_path)
    assert (found.step, found.metrics) == (2, {"train/loss": 1.0, "val/loss": 3.0})
    assert found.message == "no: api_key=***"


def test_a_status_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    runs.mark(tmp_path / "gone", "running")
    assert not (tmp_path / "gone").exists()


def test_a_run_beats_in_the_background_and_readers_meet_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "BEAT_S", 0.001)
    before = threading.active_count()
    with runs.beating(tmp_path, steps=5):
        times = {read_status(tmp_path).time for _ in range(200) if not time.sleep(0.001)}
    assert len(times) > 5
    assert threading.active_count() == before
    assert read_status(tmp_path).state == "finished"


def test_a_run_of_this_process_is_not_refused(tmp_path: Path) -> None:
    runs.refuse_running(beat(tmp_path))
    runs.refuse_running(make(tmp_path / "run", pid=os.getppid()))
