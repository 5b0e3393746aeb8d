"""Energy: joules worked by hand, booked by phase, added over ranks and legs, told in words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmfusion import api
from mmfusion.inputs import Description, part_of
from mmfusion.runs import energy
from mmfusion.runs.energy import Energy, Source, Spent
from mmfusion.training import energy as training
from mmfusion.training import power
from mmfusion.training.energy import EnergyMeter, Ledger, Metered, metered
from tests import tiny_run

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Constant:
    """A device that draws so many watts."""

    source = Source(kind="counter", method="by hand")

    def __init__(self, clock: Clock, watts: float, device: str = "cpu") -> None:
        self.clock, self.watts, self.device, self.closed = clock, watts, device, False

    def joules(self) -> float:
        return self.watts * self.clock.now

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "energy.json").read_text())


def test_joules_are_watts_times_seconds_and_each_phase_has_its_own(tmp_path: Path, clock: Clock) -> None:
    ledger = Ledger(tmp_path, [Constant(clock, 10.0), Constant(clock, 200.0, "cuda:0")], clock=clock)
    clock.now += 3
    ledger.book("training", samples=60)
    clock.now += 2
    ledger.book("validation")
    clock.now += 4
    ledger.book("evaluation")
    clock.now += 0.5
    ledger.book("evaluation", "generation", tokens=7)
    ledger.write()
    kept = written(tmp_path)
    assert kept["training"] == {"joules": {"cpu": 30, "cuda:0": 600}, "seconds": 3, "samples": 60, "tokens": 0}
    assert kept["validation"]["joules"] == {"cpu": 20, "cuda:0": 400}
    assert kept["evaluation"] == {"joules": {"cpu": 45, "cuda:0": 900}, "seconds": 4.5, "samples": 0, "tokens": 7}
    assert kept["joules"] == 630 + 420 + 945  # of generation once
    assert kept["joules_per_sample"] == 630 / 60
    assert kept["joules_per_generated_token"] == 105 / 7
    assert kept["how"] == "counter"


def test_a_run_that_goes_on_adds_to_what_it_spent_before(tmp_path: Path, clock: Clock) -> None:
    for seconds, samples in ((3, 30), (5, 40)):
        ledger = Ledger(tmp_path, [Constant(clock, 10.0)], clock=clock)
        clock.now += seconds
        ledger.book("training", samples=samples)
        ledger.write()
        clock.now += 1000  # nobody works on it
    assert written(tmp_path)["training"] == {"joules": {"cpu": 80}, "seconds": 8, "samples": 70, "tokens": 0}
    (tmp_path / "energy.json").write_text("{")
    ledger = Ledger(tmp_path, [Constant(clock, 10.0)], clock=clock)
    clock.now += 2
    ledger.book("training", samples=5)
    assert energy.line(ledger.spent) == "20 J (read from counters, without before it went on), 4 J a sample trained"


def test_what_other_ranks_spent_is_added_and_seconds_pass_once(tmp_path: Path, clock: Clock) -> None:
    first, second = (Ledger(tmp_path, [Constant(clock, watts)], clock=clock) for watts in (10.0, 4.0))
    clock.now += 2
    for ledger in (first, second):
        ledger.book("training", samples=5)
    for _ in range(2):  # heard again it is not added again
        first.hear([second.own])
    assert first.spent.training == Spent(joules={"cpu": 28}, seconds=2, samples=10)
    assert len(first.spent.sources["cpu"]) == 1


def test_it_is_written_now_and_then_and_at_the_end(tmp_path: Path, clock: Clock) -> None:
    ledger = Ledger(tmp_path, [Constant(clock, 1.0)], every_s=10, clock=clock)
    for seconds, expected in ((9, None), (1, 10), (9, 10), (1, 20)):
        clock.now += seconds
        ledger.book("training", samples=1)
        ledger.write(now=False)
        assert (written(tmp_path)["joules"] if (tmp_path / "energy.json").exists() else None) == expected


# --------------------------------------------------------------------------------------------------------- callback


@pytest.fixture
def meter(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """The callback behind `on_train_start`, with a device of 10 W, a trainer that accumulates twice, and a module."""
    monkeypatch.setattr(power, "meters", lambda device, first_here: [Constant(clock, 10.0)] if first_here else [])
    monkeypatch.setattr(training, "Ledger", lambda *given, every_s: Ledger(*given, every_s=every_s, clock=clock))
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), strategy=SimpleNamespace(root_device=CPU), local_rank=0, world_size=1,
        global_rank=0, global_step=0, accumulate_grad_batches=2, is_global_zero=True, validating=False,
    )  # fmt: skip
    module = SimpleNamespace(log_every=2, logs=lambda step: step % 2 == 0, told={})
    callback: Any = EnergyMeter(every_s=0)
    callback.on_train_start(trainer, module)
    return callback, trainer, module


def test_steps_are_booked_when_they_are_logged_and_validation_apart(
    meter: tuple[Any, Any, Any], tmp_path: Path, clock: Clock
) -> None:
    callback, trainer, module = meter
    batch = SimpleNamespace(keys=("a", "b", "c"))
    for step in (1, 2):
        for micro in (0, 1):
            clock.now += 1
            trainer.global_step = step - 1 + micro
            callback.on_train_batch_end(trainer, module, None, batch, 2 * (step - 1) + micro)
        assert module.told == ({} if step == 1 else {"energy/joules": 40})
    assert written(tmp_path)["training"] == {"joules": {"cpu": 40}, "seconds": 4, "samples": 12, "tokens": 0}
    callback.on_validation_start(trainer, module)
    clock.now += 5
    callback.on_validation_end(trainer, module)
    clock.now += 1
    callback.on_train_end(trainer, module)
    kept = written(tmp_path)
    assert (kept["training"]["joules"], kept["validation"]["joules"]) == ({"cpu": 50}, {"cpu": 50})
    assert kept["joules_per_sample"] == 50 / 12


def test_the_second_process_of_a_machine_leaves_its_counter_to_the_first_and_hears_all_others_once(
    meter: tuple[Any, Any, Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, trainer, module = meter
    trainer.local_rank = trainer.global_rank = 1
    trainer.world_size, trainer.is_global_zero = 2, False
    first = Energy(training=Spent(joules={"cpu": 40.0}, seconds=1, samples=3), sources={"cpu": [Constant.source]})
    monkeypatch.setattr(training, "of_all", lambda own: [first, own])
    callback.on_train_start(trainer, module)
    clock.now += 1
    for micro in (0, 1):
        callback.on_train_batch_end(trainer, module, None, SimpleNamespace(keys=("a", "b")), micro)
    assert callback._ledger.spent.training == Spent(joules={"cpu": 40.0}, seconds=1, samples=3 + 4)


def test_where_no_step_is_logged_the_file_is_written_all_the_same(
    meter: tuple[Any, Any, Any], tmp_path: Path, clock: Clock
) -> None:
    callback, trainer, module = meter
    module.log_every, module.logs = 0, lambda step: False
    for step in range(1, 11):
        assert not (tmp_path / "energy.json").exists()
        clock.now += 1
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, SimpleNamespace(keys=("a",)), 1)
    assert written(tmp_path)["joules"] == 100
    assert module.told == {}


def test_a_run_that_fails_keeps_what_it_spent_but_one_that_took_no_step_leaves_nothing(
    meter: tuple[Any, Any, Any], tmp_path: Path, clock: Clock
) -> None:
    callback, trainer, module = meter
    ledger = callback._ledger
    clock.now += 1
    callback.on_exception(trainer, module, ValueError())
    assert not (tmp_path / "energy.json").exists()
    assert ledger._meters[0].closed
    callback.on_train_start(trainer, module)
    clock.now += 3
    callback.on_train_batch_end(trainer, module, None, SimpleNamespace(keys=("a",)), 0)
    callback.on_exception(trainer, module, ValueError())
    assert written(tmp_path)["joules"] == 30


def test_only_the_generation_of_an_evaluation_counts_for_its_tokens(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = api.load(tiny_run.save(tmp_path / "run"))

    def slow(*given: Any, **how: Any) -> list[list[int]]:
        clock.now += 0.5
        return [[300, 301], [300] * 5, []]  # ended, cut at five, ended at once

    monkeypatch.setattr(api, "generate", slow)
    model = Metered(plain, Ledger(tmp_path, [Constant(clock, 10.0)], clock=clock))
    picture = part_of("image", tiny_run.picture(), "image", Description())
    clock.now += 2
    said = model.generate_parts([[picture]] * 3, "en", 5)
    clock.now += 1
    spent = model.spent()
    assert said == plain.generate_parts([[picture]] * 3, "en", 5)
    assert (spent.evaluation.total, spent.evaluation.seconds) == (35, 3.5)
    assert (spent.generation.total, spent.generation.seconds) == (5, 0.5)
    assert spent.generation.tokens == model.pieces_said == 3 + 5 + 1
    assert written(tmp_path)["joules_per_generated_token"] == 5 / 9


def test_an_evaluation_is_metered_where_training_was(tmp_path: Path) -> None:
    plain = api.load(tiny_run.save(tmp_path / "run"))
    with metered(plain, tmp_path) as model:
        assert energy.line(model.spent()) == "not recorded"
    assert not (tmp_path / "energy.json").exists()
    energy.keep(tmp_path, Energy(training=Spent(joules={"cpu": 8.0}, samples=4)))
    with metered(plain, tmp_path) as model:
        spent = model.spent()
    assert spent.sources.keys() == {"cpu"}
    assert (spent.training.total, spent.evaluation.total > 0) == (8, True)
    assert energy.read(tmp_path) == spent


def test_a_device_of_which_nothing_is_known_is_named(tmp_path: Path, clock: Clock) -> None:
    meter = power.gpu(torch.device("mps"))
    ledger = Ledger(tmp_path, [meter], clock=clock)
    ledger.book("training", samples=3)
    assert ledger.spent.how == "unknown"
    assert ledger.spent.joules_per_sample is None
    assert "not known" in energy.sources(ledger.spent)[0]
    assert energy.facts(ledger.spent) == {}
    both = ledger.spent.plus(Energy(sources={"cpu": [Constant.source]}))
    assert both.how == "counter"


# ------------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("joules", "told"),
    [(None, "?"), (0, "0 J"), (2.5e-6, "2.5 µJ"), (0.0123, "12.3 mJ"), (61.5, "61.5 J"), (999.9, "1000 J"),
     (1234.0, "1.23 kJ"), (7.6e6, "7.6 MJ"), (4.2e9, "4200 MJ")],
)  # fmt: skip
def test_amounts(joules: float | None, told: str) -> None:
    assert energy.amount(joules) == told


def test_a_line_says_what_is_an_estimate() -> None:
    training = Spent(joules={"cpu": 60.0}, seconds=2, samples=30)
    counted = Energy(training=training, sources={"cpu": [Constant.source]})
    assert energy.line(counted) == "60 J (read from counters), 2 J a sample trained"
    guessed = Source(kind="estimate", method="x", constants={"watts_per_thread": 4.0})
    mixed = counted.plus(Energy(sources={"cpu": [guessed]}))  # it went on elsewhere
    assert energy.line(mixed).startswith("60 J (an estimate)")
    assert energy.sources(mixed)[1] == "cpu: an estimate. x. Assumed: watts per thread 4."
    assert energy.line(Energy()) == "not recorded"
    unknown = power.Unknown("mps:0").source
    partly = counted.plus(Energy(sources={"mps:0": [unknown]}))
    assert energy.line(partly).startswith("60 J (read from counters, without mps:0)")
    assert energy.facts(partly)["Whole run"] == "60 J, counted, without mps:0"
    assert energy.line(Energy(training=training, sources={"mps:0": [unknown]})).startswith("not known")
