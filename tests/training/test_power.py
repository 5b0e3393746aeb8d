"""Meters: counters in a folder of their own, what an estimate says of itself."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmfusion import runs
from mmfusion.training import power

CPU = torch.device("cpu")


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


def test_a_gpu_is_counted_and_one_without_a_counter_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
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

    now = iter((100.0, 102.0))
    monkeypatch.setattr(power.time, "monotonic", lambda: next(now))
    meter = power.Nvml(Nvml(None, 300_000), "gpu", "cuda:0")
    assert (meter.joules(), meter.source.kind) == (600, "estimate")
