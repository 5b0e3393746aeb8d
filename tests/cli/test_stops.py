"""A run that is stopped: what it leaves, and that it goes on to the same weights."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from mmfusion import runs
from mmfusion.cli.main import main
from mmfusion.types import DataError
from tests.cli.trained import SMALL, as_typed
from tests.forked import Forked


def stopped(arguments: Sequence[str], run: Path, after: int, how: signal.Signals) -> tuple[int, str]:
    """Signal training and its workers once a point of `after` steps or more is there: exit status and its last line."""
    training = Forked(as_typed, ["train", *arguments], folder=run.parent)
    while training.poll() is None and all(runs.step_of(p) < after for p in runs.resume_points(run)):
        time.sleep(0.01)
    os.killpg(training.pid, how)
    status, _, error = training.ended()
    return status, error.strip().rpartition("\n")[2]


@pytest.mark.slow  # three processes that train
def test_asked_to_stop_twice_and_gone_on_with_it_ends_in_the_same_weights(tmp_path: Path) -> None:
    """SIGTERM, then Ctrl-C, in real processes with two workers each."""
    small = ["steps=40", *SMALL, "data.workers=2"]
    assert main(["train", f"paths.run={tmp_path / 'whole'}", *small]) == 0
    run = tmp_path / "run"
    advice = f"stopped; go on with: mmfusion train resume={run}"
    assert stopped([f"paths.run={run}", *small], run, 2, signal.SIGTERM) == (143, advice)
    assert stopped([f"resume={run}"], run, 12, signal.SIGINT) == (130, advice)
    assert main(["train", f"resume={run}"]) == 0
    weights = [load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow  # two runs in processes that train
def test_killed_with_averages_accumulation_and_validations_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """kill -9, which nothing can answer: the last point is older than the last step, the log further than the point."""
    how = ["steps=24", *SMALL, "callbacks=[default,ema]", "trainer.accumulate_grad_batches=2",
           "trainer.val_check_interval=6", "trainer.limit_val_batches=1"]  # fmt: skip
    assert main(["train", f"paths.run={tmp_path / 'whole'}", *how]) == 0
    run = tmp_path / "run"
    assert stopped([f"paths.run={run}", *how], run, 8, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (run / "checkpoint").exists()
    assert main(["train", f"resume={run}"]) == 0
    weights = [load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    points = [torch.load(folder / "resume" / "step=24.ckpt", weights_only=True) for folder in (run, tmp_path / "whole")]
    trained = [point["current_model_state"] for point in points]  # the others are averages of these
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[1])


class Disturbance(Callback):
    """Once in a process, at the start of micro-batch `batch`: `signals`, or an error where there are none."""

    done = False

    def __init__(self, batch: int, signals: Sequence[int] = ()) -> None:
        self.batch, self.signals = batch, signals

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if batch_idx == self.batch and not Disturbance.done:
            Disturbance.done = True
            for number in self.signals:
                signal.raise_signal(signal.Signals(number))
            if not self.signals:
                raise DataError("no more")


ACCUMULATED = ["steps=4", "trainer.accumulate_grad_batches=2", *SMALL, "callbacks.resume.every_n_train_steps=50",
               "trainer.val_check_interval=2", "trainer.limit_val_batches=1"]  # fmt: skip


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that four steps of two micro-batches end in."""
    run = tmp_path_factory.mktemp("runs") / "accumulated"
    assert main(["train", f"paths.run={run}", *ACCUMULATED]) == 0
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.mark.parametrize(
    ("batch", "signals", "status", "left"),
    [
        (5, [signal.SIGTERM], 143, 3),  # inside a step, which is ended first
        (5, [signal.SIGINT], 130, 3),
        (5, [signal.SIGTERM, signal.SIGTERM], 143, 2),  # at once: the step begins again when the run goes on
        (5, [], 1, 2),
    ],
)
def test_stopped_inside_a_step_of_two_batches_it_goes_on_to_the_same_weights(
    batch: int,
    signals: list[int],
    status: int,
    left: int,
    accumulated: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, disturbance = tmp_path / "run", f"{__name__}.Disturbance"
    disturbed = [f"+callbacks.x._target_={disturbance}", f"+callbacks.x.batch={batch}"]
    disturbed += [f"+callbacks.x.signals={[int(number) for number in signals]}"]
    monkeypatch.setattr(Disturbance, "done", False)
    assert main(["train", f"paths.run={run}", *ACCUMULATED, *disturbed]) == status
    assert [runs.step_of(point) for point in runs.resume_points(run)] == [left]
    assert main(["train", f"resume={run}", "--allow", disturbance]) == 0
    weights = load_file(run / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weights[name], accumulated[name]) for name in accumulated)
    if left == 3:  # stopped at once, right behind a validation, Lightning counts the steps in its log one too far
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows if row["train/loss"]] == [str(step) for step in range(4)]
        assert [row["step"] for row in rows if row["val/loss"]] == ["1", "3"]


class LastSignal(Callback):
    """SIGTERM once in a process, in the validation after `step` steps."""

    done = False

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: object) -> None:
        if trainer.global_step == self.step and not LastSignal.done:
            LastSignal.done = True
            signal.raise_signal(signal.SIGTERM)


def test_stopped_in_the_validation_that_ends_training_it_has_ended_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping ends it there; its weights are averaged, its health is told, and it does not train on."""
    short = ["steps=4", *SMALL, "trainer.val_check_interval=1", "trainer.limit_val_batches=1",
             "callbacks=[default,ema,early_stopping]", "callbacks.ema.decay=0.5", "callbacks.early_stopping.patience=1",
             "callbacks.early_stopping.min_delta=1000.0"]  # fmt: skip
    assert main(["train", f"paths.run={tmp_path / 'whole'}", *short]) == 0
    run, last = tmp_path / "run", f"{__name__}.LastSignal"
    monkeypatch.setattr(LastSignal, "done", False)
    assert main(["train", f"paths.run={run}", *short, f"+callbacks.x._target_={last}", "+callbacks.x.step=2"]) == 143
    assert runs.ended_at(run) == 2
    assert (run / "health.json").is_file()
    assert main(["train", f"resume={run}", "--allow", last]) == 0
    weights = [load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_stopped_before_the_first_step_it_leaves_nothing(tmp_path: Path) -> None:
    training = Forked(as_typed, ["train", f"paths.run={tmp_path / 'run'}", *SMALL], folder=tmp_path)
    while not training.written()[0].startswith("run folder") and training.poll() is None:
        time.sleep(0.001)
    os.kill(training.pid, signal.SIGINT)
    status, _, error = training.ended()
    assert (status, error.strip().splitlines()[-1]) == (130, "stopped before the first step")
    assert not (tmp_path / "run").exists()
