"""Energy: joules worked by hand, counters in a folder of their own, what an estimate says of itself."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmfusion import api, runs
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
    assert Ledger(tmp_path, []).spent == Energy()


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
    monkeypatch.setattr(power, "meters", lambda device, first_here: [Constant(clock, 10.0)])
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
    assert energy.line(metered(plain, tmp_path).spent()) == "not recorded"
    assert not (tmp_path / "energy.json").exists()
    energy.keep(tmp_path, Energy(training=Spent(joules={"cpu": 8.0}, samples=4)))
    spent = metered(plain, tmp_path).spent()
    assert spent.sources.keys() == {"cpu"}
    assert (spent.training.total, spent.evaluation.total > 0) == (8, True)
    assert energy.read(tmp_path) == spent


# ----------------------------------------------------------------------------------------------------------- meters


def rapl(folder: Path, **domains: tuple[str, int]) -> tuple[Path, Callable[[str, int], None]]:
    """Counters as Linux shows them, each with its name and µJ, that wrap at 1,000 J; and a way to set one."""
    root = folder / "powercap" / "intel-rapl"

    def put(domain: str, microjoules: int) -> None:
        runs.write(root / domain / "energy_uj", f"{microjoules}\n")  # whole, as the kernel shows it

    for domain, (name, microjoules) in domains.items():
        (root / domain).mkdir(parents=True)
        (root / domain / "name").write_text(f"{name}\n")
        (root / domain / "max_energy_range_uj").write_text("1000000000\n")
        put(domain, microjoules)
    return root, put


CORE = "intel-rapl:0/intel-rapl:0:0"  # a part of its package
TWO = {
    "intel-rapl:0": ("package-0", 900_000_000),
    CORE: ("core", 7_000_000),
    "intel-rapl:1": ("package-1", 5_000_000),
}


def test_a_counter_is_read_over_all_packages_and_past_its_wrap(tmp_path: Path) -> None:
    root, put = rapl(tmp_path, **TWO)
    (meter,) = power.meters(CPU, rapl=root)
    put("intel-rapl:0", 950_000_000)
    put(CORE, 40_000_000)
    put("intel-rapl:1", 25_000_000)
    assert meter.joules() == pytest.approx(50 + 20, rel=1e-5)
    put("intel-rapl:0", 30_000_000)  # 50 J to its end, 30 J from its beginning
    assert meter.joules() == pytest.approx(70 + 80, rel=1e-5)
    assert meter.joules() == pytest.approx(150, rel=1e-5)
    assert meter.source.kind == "counter"
    assert meter.source.method.startswith("RAPL")
    meter.close()


def test_a_counter_is_read_by_itself_before_it_can_wrap_twice_and_no_longer_than_the_run(tmp_path: Path) -> None:
    root, put = rapl(tmp_path, **{"intel-rapl:0": ("package-0", 0)})
    threads = threading.active_count()
    meter = power.Rapl(root, every_s=0.001)
    expected = 0
    for microjoules in (600_000_000, 200_000_000, 800_000_000):  # + 600, + 600, + 600: more than one wrap in all
        put("intel-rapl:0", microjoules)
        expected += 600
        until = time.monotonic() + 5
        while meter._joules < expected - 1 and time.monotonic() < until:  # not by asking it
            time.sleep(0.001)
    meter.close()
    assert meter._joules == pytest.approx(1800, rel=1e-5)
    assert threading.active_count() == threads


def test_one_process_of_a_machine_reads_its_counter_and_all_estimate_their_own(tmp_path: Path) -> None:
    root, _ = rapl(tmp_path, **TWO)
    assert power.meters(CPU, first_here=False, rapl=root) == []
    for first in (True, False):
        (own,) = power.meters(CPU, first_here=first, rapl=tmp_path / "nothing")
        assert isinstance(own, power.CpuTime)


def test_an_estimate_says_so_with_its_reason_and_what_was_assumed(tmp_path: Path) -> None:
    (meter,) = power.meters(CPU, rapl=tmp_path / "nothing")
    assert meter.source.kind == "estimate"
    assert "No counter: RAPL is not there" in meter.source.method
    assert "Idle power" in meter.source.method
    assert meter.source.constants["watts_per_thread"] == power.watts_per_thread()[0]
    empty = tmp_path / "intel-rapl"
    empty.mkdir()
    assert "may not be read" in power.meters(CPU, rapl=empty)[0].source.method


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def wait(working: Any, ended: Any) -> None:
    busy(0.3)
    working.set()
    ended.wait(10)


def test_an_estimate_is_cpu_time_times_watts_and_has_that_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "watts_per_thread", lambda: (50.0, "by hand"))
    meter = power.CpuTime()
    before, at = meter.joules(), time.process_time()
    busy(0.2)
    assert meter.joules() - before == pytest.approx(50 * (time.process_time() - at), abs=0.5)
    time.sleep(0.2)  # costs nothing
    assert meter.joules() - before == pytest.approx(50 * (time.process_time() - at), abs=0.5)
    forked = multiprocessing.get_context("fork")
    working, ended = forked.Event(), forked.Event()
    worker = forked.Process(target=wait, args=(working, ended))
    own = meter.joules() - 50 * time.process_time()
    worker.start()
    working.wait(10)
    of_worker = meter.joules() - 50 * time.process_time() - own
    assert of_worker >= 50 * 0.25  # its times have hundredths of a second
    ended.set()
    worker.join()
    assert meter.joules() - 50 * time.process_time() - own == pytest.approx(of_worker, abs=0.5)  # not lost with it


CHIPS = "processor : 0\nphysical id : 0\nflags : fpu{}\n\nprocessor : 1\nphysical id : 1\nflags : fpu{}\n"


@pytest.mark.parametrize(
    ("name", "virtual", "watts", "of"),
    [
        ("AMD EPYC 7763 64-Core Processor", False, 2 * 280 / 256, "TDP of 280 W, 2 x, over 256 threads"),
        ("AMD EPYC 7763 64-Core Processor", True, 4.0, "a virtual machine has a part of the chip"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", False, 2 * 205 / 256, "TDP of 205 W"),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", False, 2 * 28 / 256, "TDP of 28 W"),
        ("Abacus 3000", False, 4.0, "not in its table"),
    ],
)
def test_watts_of_a_thread(
    name: str, virtual: bool, watts: float, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 256)
    (tmp_path / "cpuinfo").write_text(CHIPS.replace("{}", " hypervisor" if virtual else ""))
    got, told = power.watts_per_thread(name, tmp_path / "cpuinfo")
    assert got == pytest.approx(watts)
    assert of in told


class Nvml:
    """NVML with one GPU, whose counter (mJ) or power (mW) is set; None fails as one that is not supported."""

    NVMLError = RuntimeError

    def __init__(self, counter: int | None, power: int | None) -> None:
        self.counter, self.power = counter, power

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._told(self.counter)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._told(self.power)

    def _told(self, value: int | None) -> int:
        if value is None:
            raise self.NVMLError("not supported")
        return value


def test_a_gpu_is_counted_and_one_without_a_counter_estimated(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(5_000, None)
    meter = power.Nvml(nvml, "gpu", "cuda:1")
    nvml.counter = 12_500
    assert (meter.joules(), meter.source.kind, meter.device) == (7.5, "counter", "cuda:1")
    nvml.counter = 1_000  # the driver was loaded anew
    assert meter.joules() == 7.5
    nvml.counter = None  # for once
    assert meter.joules() == 7.5
    nvml.counter = 2_000
    assert meter.joules() == 8.5

    monkeypatch.setattr(power.time, "monotonic", clock)
    meter = power.Nvml(Nvml(None, 300_000), "gpu", "cuda:0")
    clock.now += 2
    assert (meter.joules(), meter.source.kind) == (600, "estimate")


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
    assert energy.line(Energy(training=training, sources={"mps:0": [unknown]})).startswith("not known")
