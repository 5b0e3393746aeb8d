"""What a stranger's first hour costs: own data, own code, wrong input, a kill, a start, the tests, the log.

uv run python experiments/first_hour/run.py           all rows of results.json, about an hour on two cores
uv run python experiments/first_hour/run.py --quick   the same path with few steps, within 180 s
uv run python experiments/first_hour/run.py --only H5 H6      these rows anew, the others as they are
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.first_hour import faults, own_data
from experiments.processes import PROGRAM, ROOT, TRAIN, killed, timed
from experiments.results import commit, matrix_gflops, row, save

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/first_hour/run.py"
Rows = list[dict[str, Any]]


def own_path(work: Path, times: int, share: float, overrides: list[str]) -> Rows:
    """H1: a table of files to shards, a run, its evaluation, an answer and embeddings; each command a process."""
    seconds, count = [], 0
    for k in range(times):
        home = work / f"home{k}"
        own_data.make(home / "own", share)
        commands = _commands(home, overrides)
        count, transcript, began = len(commands), [], time.monotonic()
        for command in commands:
            told = _run(home, command)
            transcript.append(f"$ mmfusion {shlex.join(command)}\n{told}")
            print(f"{time.monotonic() - began:6.0f} s  mmfusion {command[0]}", flush=True)
        seconds.append(time.monotonic() - began)
        (work / f"transcript{k}.txt").write_text("\n".join(transcript))
    beside = {"matrix GFLOP/s": matrix_gflops(), "fastest": min(seconds), "slowest": max(seconds)}
    return [
        row("H1", "own table of pictures, sounds and series to shards, run, evaluation, answer and embeddings",
            statistics.median(seconds), "s", n=times, must="<= 600", beside=beside),
        row("H1.commands", "commands typed for it", count, "commands", n=1, must="<= 6"),
    ]  # fmt: skip


def _commands(home: Path, overrides: list[str]) -> list[list[str]]:
    image, sound, series = (sorted((home / "own" / f"{kind}s").iterdir())[1] for kind in ("image", "audio", "sensor"))
    shown = [str(path.relative_to(home)) for path in (image, sound, series)]
    return [
        ["data", "pack", "own/things.csv", "shards"],
        ["data", "stats", "shards", "--out", "stats.html"],
        ["train", "data=shards", "data.root=shards", "paths.run=runs/mine", *overrides],
        ["evaluate", "runs/mine"],
        ["generate", "runs/mine", "--image", shown[0], "--audio", shown[1]],  # of one thing, as it was trained
        ["embed", "runs/mine", *shown, "--out", "embeddings.parquet"],
    ]


def _run(home: Path, command: list[str]) -> str:
    ended = subprocess.run([*PROGRAM, *command], cwd=home, capture_output=True, text=True)
    told = (ended.stdout + ended.stderr).replace(f"{home}/", "").replace(str(home), ".")
    if ended.returncode:
        raise SystemExit(f"mmfusion {shlex.join(command)} failed ({ended.returncode}):\n{told}")
    return told


# Making an optimizer imports torch._dynamo.
LIBRARIES = "import lightning.pytorch, timm, torch; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])"


def start(work: Path, times: int) -> Rows:
    """H5: process start to the end of the first step of the quickstart, and of the help; the disk is warm.

    Beside it, in pairs, a process that imports the libraries that training cannot do without and nothing of ours.
    Warm is compiled, too: Python keeps what it compiles, unless it is told not to.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    first, help, bare = [], [], []
    for k in range(times + 1):  # the first is to warm up
        command = [*TRAIN, f"paths.run={work / f'start{k}'}", "callbacks.progress.every_s=0.001"]
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("step 1/"):
            if not line:
                raise SystemExit("training ended before its first step")
        first.append(time.monotonic() - began)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.wait()
        began = time.monotonic()
        subprocess.run([*PROGRAM, "--help"], cwd=ROOT, env=env, capture_output=True, check=True)
        help.append(time.monotonic() - began)
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", LIBRARIES], env=env, check=True)
        bare.append(time.monotonic() - began)
    return [
        row("H5.step", "start to first step of the quickstart, warm, median", statistics.median(first[1:]), "s",
            n=times, must="<= 10", beside={"matrix GFLOP/s": matrix_gflops(), "slowest": max(first[1:]),
                    "torch, Lightning and timm alone": statistics.median(bare[1:])}),
        row("H5.help", "mmfusion --help, median", statistics.median(help[1:]), "s", n=times, must="<= 0.5"),
    ]  # fmt: skip


WITHOUT = ["~callbacks.health", "~callbacks.speed", "~callbacks.exhibit", "~callbacks.heartbeat", "~callbacks.resume",
           "~callbacks.best", "~logger.csv"]  # fmt: skip


def overhead(work: Path, pairs: int, steps: int) -> dict[str, Any]:
    """H7: training with everything against training without log, health, checkpoints; each pair one after the other."""
    shares = []
    for k in range(pairs):
        took = {}
        for name, less in (("with", []), ("without", WITHOUT)) if k % 2 else (("without", WITHOUT), ("with", [])):
            run, log = work / f"{name}{k}", work / f"{name}{k}.log"
            timed([*TRAIN, f"paths.run={run}", f"steps={steps}", "evaluation=none", *less], log)
            told = re.search(r"trained \d+ steps in ([\d.]+) s", log.read_text())
            assert told is not None
            took[name] = float(told[1])
        print(f"{steps} steps: {took['with']:.1f} s with, {took['without']:.1f} s without", flush=True)
        shares.append(took["with"] / took["without"] - 1)
    return row("H7", "extra time of log, health and checkpoints in training, median of pairs",
               statistics.median(shares), "", n=pairs, must="<= 0.05",
               beside={"least": min(shares), "most": max(shares)})  # fmt: skip


def tests(work: Path) -> dict[str, Any]:
    """H6: the fast suite."""
    began = time.monotonic()  # `timed` would look at the memory of every process twice a second
    ended = subprocess.run([sys.executable, "-m", "pytest"], cwd=ROOT, capture_output=True, text=True)
    took = time.monotonic() - began
    if ended.returncode:
        raise SystemExit(f"the fast tests failed:\n{ended.stdout[-3000:]}")
    passed = re.search(r"(\d+) passed", ended.stdout)
    return row("H6", "fast tests after installation", took, "s", n=int(passed[1]) if passed else 0, must="<= 300",
               beside={"matrix GFLOP/s": matrix_gflops()})  # fmt: skip


def wrong_input(work: Path) -> Rows:
    """H3: every case ends with an exit status, one line that names the thing, and nothing half-written."""
    failed = faults.run_all(work / "faults")
    for name, reason in failed.items():
        print(f"{name}: {reason}", flush=True)
    return [
        row("H3", "cases of wrong input that end otherwise than in one clear line", len(failed), "cases",
            n=len(faults.CASES), must="== 0"),
        row("H3.cases", "cases of wrong input tried", len(faults.CASES), "cases", n=1, must=">= 40"),
    ]  # fmt: skip


def own_code() -> dict[str, Any]:
    """H2: the lines of the worked example in notebook 03, which the tests run from a package outside the repository."""
    lines = [line for text in faults.own_package().values() for line in text.splitlines()]
    return row("H2", "own encoder in an own package: class and YAML, all lines", len(lines), "lines", n=1, must="<= 50")


def _own_path(work: Path) -> Rows:
    rows = own_path(work, 3, 1.0, [])
    shutil.copyfile(work / "transcript0.txt", HERE / "transcript.txt")
    return rows


def _keep(part: str, measured: Rows) -> None:
    """Put the rows of a part in the place of its old ones, at once: an hour is not lost with its last minute."""
    path = HERE / "results.json"
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [*(one for one in old if one["id"].partition(".")[0] != part), *measured]
    save(path, sorted(rows, key=lambda one: one["id"].partition(".")[0]), COMMAND)


PARTS: dict[str, Callable[[Path], Rows]] = {
    "H1": _own_path,
    "H2": lambda work: [own_code()],
    "H3": wrong_input,
    "H4": lambda work: [killed("H4", work, 5, 60)],
    "H5": lambda work: start(work, 5),
    "H6": lambda work: [tests(work)],
    "H7": lambda work: [overhead(work, 5, 120)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one of each; writes results.quick.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these anew, keep the other rows")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-first-hour-"))
    work.mkdir(parents=True, exist_ok=True)
    commit()
    if options.quick:
        rows = own_path(work, 1, 0.05, ["steps=3", "data.batch_size=16", "data.workers=0"])
        save(HERE / "results.quick.json", [*rows, own_code(), *wrong_input(work)], f"{COMMAND} --quick")
    else:
        for part in options.only or PARTS:
            _keep(part, PARTS[part](work))
    if not options.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
