"""How many joules a device has taken: its own counter where that can be read, else an estimate that says so.

codecarbon reads the counters (RAPL of processors, NVML of NVIDIA's GPUs) and has the table of processors' power. Its
tracker is not used: without a counter it charges a run for whatever else the machine does, a virtual machine of two
threads for a whole chip, and anyone for 20 W of memory; it takes 1.5 s to start, runs two threads, obeys any
`.codecarbon.config` in the working folder, and its result does not say what was counted and what assumed.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import logging
import multiprocessing
import re
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from mmfusion.runs import processor
from mmfusion.runs.energy import Source

RAPL = Path("/sys/class/powercap/intel-rapl/subsystem")
CPUINFO = Path("/proc/cpuinfo")
READ_S = 30.0  # between readings of a counter that wraps: in minutes, under load
NOT_IN_IT = "Idle power, memory, disks and losses of the supply are not in it"


class Meter(Protocol):
    """A device's joules."""

    device: str
    source: Source

    def joules(self) -> float:
        """Since the meter was made; never less than before."""
        ...

    def close(self) -> None:
        """End what it runs."""
        ...


def meters(device: torch.device, *, first_here: bool = True, rapl: Path = RAPL) -> list[Meter]:
    """Those of one process that computes on `device`.

    A processor's counter is the whole machine's: of several processes on one only the `first_here` reads it. What is
    estimated is each one's own.
    """
    lacking = why_not(rapl)
    cpu: list[Meter] = [CpuTime(lacking)] if lacking else [Rapl(rapl)] if first_here else []
    return [*cpu, gpu(device)] if device.type != "cpu" else cpu


# ------------------------------------------------------------------------------------------------------- processors


def _quiet() -> None:
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # behind its import, which sets it


def why_not(rapl: Path) -> str | None:
    """Why no counter of processors can be read below the folder; None if one can."""
    from codecarbon.core.cpu import is_rapl_available

    _quiet()
    if not rapl.exists():
        return "RAPL is not there"
    return None if is_rapl_available(str(rapl)) else "RAPL may not be read by this user"


class Rapl:
    """The counters of a machine's processor packages, where they can be read, and often enough to see them wrap."""

    device = "cpu"

    def __init__(self, folder: Path = RAPL, *, every_s: float = READ_S) -> None:
        from codecarbon.core.cpu import IntelRAPL
        from codecarbon.core.units import Energy, Time

        _quiet()
        told = "RAPL: all that the processor packages of the machine took, for whatever ran on them"
        self.source = Source(kind="counter", method=told)
        self._counters, self._second, self._kwh = IntelRAPL(rapl_dir=str(folder)), Time(1.0), Energy.JOULES_TO_KWH
        self._counters.start()
        self._joules, self._reading, self._ended = 0.0, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._read_on, args=(every_s,), daemon=True)
        self._thread.start()

    def joules(self) -> float:
        with self._reading:
            moved = self._counters.get_cpu_details(self._second)
            self._joules += sum(kwh for name, kwh in moved.items() if "Energy Delta" in name) / self._kwh
            return self._joules

    def _read_on(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            self.joules()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class CpuTime:
    """CPU time of this process and of the workers it started, times the watts of a busy thread."""

    device = "cpu"

    def __init__(self, why: str = "RAPL is not there") -> None:
        watts, of = watts_per_thread()
        told = f"CPU time of the run's processes times the power of a busy thread. No counter: {why}. {NOT_IN_IT}"
        assumed = {"watts_per_thread": watts, "from": of, "processor": processor() or "not named"}
        self.source = Source(kind="estimate", method=told, constants=assumed)
        self._watts = watts
        self._workers: dict[int, float] = {}  # CPU seconds by process, also of those that have ended
        self._before = self._seconds()

    def joules(self) -> float:
        return self._watts * (self._seconds() - self._before)

    def close(self) -> None:
        pass

    def _seconds(self) -> float:
        import psutil

        for child in multiprocessing.active_children():  # loaders' workers; other ranks count themselves
            try:
                times = psutil.Process(child.pid).cpu_times()
            except psutil.Error:  # it has just ended
                continue
            self._workers[child.pid or 0] = times.user + times.system
        return time.process_time() + sum(self._workers.values())


def watts_per_thread(name: str | None = None, cpuinfo: Path = CPUINFO) -> tuple[float, str]:
    """Watts of one busy hardware thread, and what they are: the chip's TDP in codecarbon's table over its threads.

    Where the chip is not in the table, or its number of threads is not to be seen (a virtual machine), codecarbon's
    value for processors that are not known.
    """
    import psutil
    from codecarbon.core.cpu import DEFAULT_POWER_PER_CORE as UNKNOWN

    _quiet()
    try:
        about = cpuinfo.read_text()
    except OSError:
        about = ""
    name = name or processor()
    tdp = _tdps().get(_plain(name))
    if tdp is None:
        return float(UNKNOWN), "codecarbon's value for a processor that is not in its table"
    if re.search(r"^flags\s*:.*\bhypervisor\b", about, re.MULTILINE):
        return float(UNKNOWN), "codecarbon's value for an unknown processor: a virtual machine has a part of the chip"
    chips = len(set(re.findall(r"^physical id\s*:\s*(\d+)", about, re.MULTILINE))) or 1
    threads = psutil.cpu_count() or 1
    return tdp * chips / threads, f"TDP of {tdp:g} W, {chips} x, over {threads} threads"


@functools.cache
def _tdps() -> dict[str, float]:
    """W by processor."""
    try:
        text = importlib.resources.files("codecarbon").joinpath("data/hardware/cpu_power.csv").read_text("utf-8")
        rows = [(_plain(row["Name"]), row["TDP"]) for row in csv.DictReader(text.splitlines())]
    except (OSError, KeyError):  # another version's table
        return {}
    return {name: float(tdp) for name, tdp in rows if re.fullmatch(r"\d+(\.\d+)?", tdp)}


def _plain(name: str) -> str:
    """A processor's name without what tables leave out: trademarks, generation, clock, cores, graphics."""
    left_out = r"\((?:r|tm)\)|^\d+th gen\b|\bcpu\b|@.*|\b\S+-core processor.*|\bprocessor\b|\bw/.*|\bwith .*"
    return " ".join(re.sub(left_out, " ", name.lower()).split())


# ------------------------------------------------------------------------------------------------------------- GPUs


def gpu(device: torch.device) -> Meter:
    """NVML's, or one that says that nothing is known."""
    name = f"{device.type}:{device.index or 0}"
    if device.type == "cuda":
        from codecarbon.core import gpu_nvidia

        _quiet()
        if (nvml := getattr(gpu_nvidia, "pynvml", None)) is not None:
            try:
                uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
                return Nvml(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"), name)
            except (nvml.NVMLError, AttributeError):  # ROCm's properties have no such uuid
                pass
    return Unknown(name)


class Nvml:
    """A GPU's energy counter (Volta and later), or where it has none the power it tells at each reading."""

    def __init__(self, nvml: Any, handle: Any, device: str) -> None:
        self.device = device
        self._nvml, self._handle = nvml, handle
        self._joules, self._at = 0.0, time.monotonic()
        try:
            self._before = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # mJ
            self.source = Source(kind="counter", method="NVML: all that the GPU took, for whatever ran on it")
        except nvml.NVMLError:
            nvml.nvmlDeviceGetPowerUsage(handle)
            self._before = None
            told = (
                "NVML has no counter of this GPU: the power it takes at each reading times the seconds since the last"
            )
            self.source = Source(kind="estimate", method=told)

    def joules(self) -> float:
        now = time.monotonic()
        try:
            if self._before is None:
                self._joules += self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000 * (now - self._at)
            else:
                read = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
                self._joules += max(0, read - self._before) / 1000  # a driver loaded anew counts from nothing
                self._before = read
        except self._nvml.NVMLError:  # for this once
            return self._joules
        self._at = now
        return self._joules

    def close(self) -> None:
        pass


class Unknown:
    """A device of which nothing can be said."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.source = Source(kind="unknown", method="It has no counter that is read here, and no estimate is made")

    def joules(self) -> float:
        return 0.0

    def close(self) -> None:
        pass
