"""What the experiments do with processes: time them, kill them, compare what they leave."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from experiments.results import row

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "mmfusion.cli.main"]
TRAIN = [*PROGRAM, "train"]


def timed(command: list[str], log: Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> tuple[float, float]:
    """Run a command; seconds, and the peak of its processes' memory together (proportional set size, GB)."""
    began, peak = time.monotonic(), 0.0
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({process.returncode}), see {log}")
    return time.monotonic() - began, peak / 1e9


def _memory(pid: int) -> float:
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # a process that has just ended
        return total
    return total


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed(id: str, work: Path, times: int, steps: int) -> dict[str, Any]:
    """Kill -9 at a random moment of training, resume; the final weights against those of a run never killed."""
    small = [f"steps={steps}", "evaluation=none", "callbacks.resume.every_n_train_steps=5"]
    whole = work / "whole"
    timed([*TRAIN, f"paths.run={whole}", *small], work / "whole.log")
    expected = digest(whole / "checkpoint" / "model.safetensors")
    chance, different = random.Random(0), 0
    for k in range(times):
        folder = work / f"killed{k}"
        with (work / f"killed{k}.log").open("w") as log:
            process = subprocess.Popen([*TRAIN, f"paths.run={folder}", *small], cwd=ROOT, stdout=log, stderr=log,
                                       start_new_session=True)  # fmt: skip
            until = chance.randrange(5, steps - 5)
            while process.poll() is None and newest(folder) < until:
                time.sleep(0.02)
            time.sleep(chance.random())
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        at = newest(folder)
        timed([*TRAIN, f"resume={folder}"], work / f"resumed{k}.log")
        same = digest(folder / "checkpoint" / "model.safetensors") == expected
        print(
            f"killed after the resume point of step {at}: {'the same weights' if same else 'DIFFERENT weights'}",
            flush=True,
        )
        different += not same
    return row(
        id,
        f"of {times} runs killed -9 and resumed, ended with other weights",
        different,
        "runs",
        n=times,
        must="== 0",
    )


def newest(folder: Path) -> int:
    steps = [int(p.stem.removeprefix("step=")) for p in (folder / "resume").glob("step=*.ckpt")]
    return max(steps, default=-1)
