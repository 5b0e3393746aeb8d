"""A sweep that is killed, one whose trials have two ranks, and the one that finds the quickstart's values.

uv run python experiments/sweep/run.py             rows of results.json, about 50 minutes on two cores
uv run python experiments/sweep/run.py --only killed ranks      the first two, about ten minutes
uv run python experiments/sweep/run.py --quick     the same path with few trials and steps, within 180 s
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from experiments.processes import PROGRAM, ROOT, TRAIN, timed
from experiments.results import matrix_gflops, row, save
from mmfusion.runs.history import logged
from mmfusion.runs.listing import read
from mmfusion.sweep import space
from mmfusion.sweep.result import Result, Tried, result
from mmfusion.sweep.study import Study
from mmfusion.types import DataError

HERE = Path(__file__).parent
CONF = HERE / "conf"
COMMAND = "uv run python experiments/sweep/run.py"
SAMPLE = ROOT / "data_prep" / "sample"
FRESH = (1, 2, 3)  # seeds that the quickstart's sweep does not use
Rows = list[dict[str, Any]]


class FailsIn(Callback):
    """Ends the run of one trial of a sweep in its second step."""

    def __init__(self, trial: int) -> None:
        self.trial = trial

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and Path(trainer.default_root_dir).parent.name == f"{self.trial:03}":
            raise DataError("made to fail")


class TellsRank(Callback):
    """Each rank of a run writes down what it is given, into the run's folder as it knows it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        told = {
            "optim.lr": trainer.optimizers[0].defaults["lr"],
            "model.decoder.depth": pl_module.model.decoder.depth,
            "scheduler": type(trainer.lr_scheduler_configs[0].scheduler).__name__,
            "ranks": trainer.world_size,
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        (Path(trainer.default_root_dir) / f"rank-{trainer.global_rank}.json").write_text(json.dumps(told))


def sweep(work: Path, name: str, arguments: Sequence[str], kills: Sequence[int] = ()) -> tuple[Result, int]:
    """A sweep as a process in a folder of its own, killed -9 while a run of each trial of `kills` trains: what it came
    to, and how many of its runs were gone on with."""
    place = work / name
    place.mkdir(parents=True)
    folder = place / "sweep"
    command = [*PROGRAM, "sweep", *arguments, "--folder", "sweep", f"data.root={SAMPLE}"]
    chance = random.Random(0)
    with (work / f"{name}.log").open("w") as log:
        for number in (*kills, None):
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
            while process.poll() is None and (number is None or not _trains(folder, number)):
                time.sleep(0.02)
            if number is None:
                if process.wait():
                    raise SystemExit(f"{name} failed ({process.returncode}), see {log.name}")
                break
            time.sleep(chance.random())
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            print(f"{name}: killed in trial {number}", flush=True)
    found = _result(arguments, folder)
    starts = [log.read_text(errors="replace").count("run folder ") for log in folder.glob("trials/*/seed-*.log")]
    return found, sum(count > 1 for count in starts)


def _trains(folder: Path, number: int) -> bool:
    """Whether a run of this trial, or of a later one, has taken a step."""
    trials = [path for path in folder.glob("trials/*") if int(path.name) >= number]
    return any(list(trial.glob("seed-*/resume/step=*.ckpt")) for trial in trials)


def _result(arguments: Sequence[str], folder: Path) -> Result:
    """What a sweep's study holds."""
    name, *given = arguments
    _, written = space.read(name, CONF if "--config-dir" in given else None)
    overrides = [*(one for one in given if "=" in one), f"data.root={SAMPLE}"]
    kept = Study(folder, written.overridden(overrides))
    try:
        return result(kept, name, folder)
    finally:
        kept.close()


def _twice(one: Tried) -> bool:
    """Whether a run of the trial was trained to its end more than once, or begun anew behind a saved step."""
    logs = [log.read_text(errors="replace") for log in one.folder.glob("seed-*.log")]
    return any(len(re.findall(r"^trained \d+ steps", log, re.MULTILINE)) > 1 for log in logs)


def same(a: Tried, b: Tried) -> bool:
    """Whether two sweeps' trials of one number had the same values and came to the same, bit for bit."""
    return (a.state, dict(a.values), a.value, a.step) == (b.state, dict(b.values), b.value, b.step)


def killed(work: Path, trials: int, kills: Sequence[int]) -> Rows:
    """Q8: a sweep killed twice against one that never was."""
    arguments = ["killed", "--config-dir", str(CONF), "--trials", str(trials)]
    whole, _ = sweep(work, "whole", arguments)
    cut, resumed = sweep(work, "killed", arguments, kills)
    lost = trials - len(cut.tried)
    twice = sum(_twice(one) for one in cut.tried)
    other = sum(not same(a, b) for a, b in zip(whole.tried, cut.tried, strict=False))
    states = [one.state for one in cut.tried]
    beside = {"kills": len(kills), "runs gone on with": resumed, "lost": lost, "run twice": twice, "otherwise": other,
              **{state: states.count(state) for state in ("done", "pruned", "failed")}}  # fmt: skip
    what = f"trials of a sweep killed -9 {len(kills)} times: lost, run twice, or not as in a sweep never killed"
    failed = [one.number for one in cut.tried if one.state == "failed"]
    assert failed == [number for number in (5,) if number < trials]
    return [row("Q8", what, lost + twice + other, "trials", n=trials, must="== 0", beside=beside)]


def ranks(work: Path, trials: int, kills: Sequence[int]) -> Rows:
    """Q9: the same with two ranks a trial."""
    arguments = ["killed", "--config-dir", str(CONF), "--trials", str(trials), "trainer=ddp"]
    found, resumed = sweep(work, "ranks", arguments, kills)
    wrong = 0
    for one in found.tried:
        told = [json.loads(path.read_text()) for path in sorted(one.folder.glob("seed-0/rank-*.json"))]
        wrong += len(told) != 2 or any(not _has(rank, one) for rank in told)
    stray = [path for path in (work / "ranks").iterdir() if path.name != "sweep"]
    expected = {f"{number:03}" for number in range(trials)}
    stray += [path for path in (work / "ranks" / "sweep" / "trials").iterdir() if path.name not in expected]
    stray += [path for one in found.tried for path in one.folder.iterdir() if path.stem != "seed-0"]
    twice = sum(_twice(one) for one in found.tried)
    states = [one.state for one in found.tried]
    beside = {"kills": len(kills), "runs gone on with": resumed, "stray folders": len(stray), "run twice": twice,
              **{state: states.count(state) for state in ("done", "pruned", "failed")}}  # fmt: skip
    what = "trials of two ranks each: a rank without its trial's values, a folder that is no trial's, or one run twice"
    lost = trials - len(found.tried)
    return [row("Q9", what, wrong + len(stray) + twice + lost, "trials", n=trials, must="== 0", beside=beside)]


def _has(told: dict[str, Any], one: Tried) -> bool:
    """Whether a rank was given what the study says of the trial."""
    same = all(told[key] == one.values[key] for key in ("optim.lr", "model.decoder.depth"))
    constant = told["scheduler"] == "LambdaLR"  # the other is a OneCycleLR
    return same and told["ranks"] == 2 and constant == (one.values["scheduler"] == "constant")


def quickstart(work: Path, trials: int | None, short: Sequence[str], full: Sequence[str], seeds: Sequence[int]) -> Rows:
    """The sweep over the quickstart's learning rate and sizes, then its winner against the values that stand there."""
    began = time.monotonic()
    arguments = ["quickstart", *(["--trials", str(trials)] if trials else []), *short]
    found, _ = sweep(work, "quickstart", arguments)
    seconds = time.monotonic() - began
    best = found.best
    assert best is not None
    assert best.value is not None
    states = [one.state for one in found.tried]
    beside = {**{state: states.count(state) for state in ("done", "pruned", "failed")}, "seconds": seconds,
              "matrix GFLOP/s": matrix_gflops()}  # fmt: skip
    rows = [row("sweep.best", f"{found.sweep.metric} of the best trial", best.value, "", n=len(states), beside=beside)]
    for key, value in best.values.items():
        matters = {"importance": found.importance[key]} if found.importance else {}
        rows.append(row(f"sweep.{key}", f"{key} of the best trial", float(value), "", n=len(states), beside=matters))
    if not short:
        (HERE / "sweep.html").write_text((found.folder / "sweep.html").read_text().replace(f"{ROOT}/", ""))
    conf = ["--config-dir", str(found.folder / "conf"), "experiment=quickstart-best"]
    losses: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    for seed in seeds:
        for name, how in {"as it is": [], "found": conf}.items():
            run = work / f"{name.replace(' ', '-')}-{seed}"
            command = [*TRAIN, *how, "evaluation=none", f"seed={seed}", f"paths.run={run}", *full]
            timed(command, work / f"{run.name}.log")
            losses.setdefault(name, []).append(logged(run)["val/loss"][1][-1])
            spent.setdefault(name, []).append(read(run).status.seconds)
            print(f"{losses[name][-1]:.4f}  {spent[name][-1]:.0f} s  {name}, seed {seed}", flush=True)
    gains = [a - b for a, b in zip(losses["as it is"], losses["found"], strict=True)]
    beside = {f"{name}, {what}": statistics.mean(values) for what, of in (("loss", losses), ("seconds", spent))
              for name, values in of.items()} | {"least": min(gains), "most": max(gains)}  # fmt: skip
    what = "validation loss of the quickstart's values minus that of those found, whole runs, seeds not searched with"
    return [*rows, row("sweep.gain", what, statistics.mean(gains), "", n=len(gains), beside=beside)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few trials and steps; writes results.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the sweeps, runs and logs in this folder")
    parts = ("killed", "ranks", "quickstart")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="their rows alone are renewed")
    options = parser.parse_args()
    work = (options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-sweep-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    if "killed" in options.only:
        rows += killed(work, 2, [0]) if options.quick else killed(work, 12, [3, 8])
    if "ranks" in options.only:
        rows += ranks(work, 1, []) if options.quick else ranks(work, 12, [3, 8])
    if "quickstart" in options.only:
        few = ["steps=4", "trainer.val_check_interval=2", "data.batch_size=16", "data.workers=0"]
        rows += quickstart(work, 1, few, few, (1,)) if options.quick else quickstart(work, None, [], [], FRESH)
    file = HERE / ("results.quick.json" if options.quick else "results.json")
    kept = json.loads(file.read_text())["rows"] if options.only is not parts and file.exists() else []
    new = {one["id"] for one in rows}
    save(file, [*(one for one in kept if one["id"] not in new), *rows], COMMAND)


if __name__ == "__main__":
    main()
