"""Optimizers whose state has eight bits, beside AdamW: its bytes, and whether the loss goes another way.

uv run python experiments/quantization/optimizers.py             rows of results.optimizers.json, about 40 minutes
uv run python experiments/quantization/optimizers.py --quick     few steps of a tiny model, within 180 s
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from experiments.processes import PROGRAM, ROOT, TRAIN, timed
from experiments.results import row, save

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/quantization/optimizers.py"
SEEDS = (1, 2, 3)
WINDOW = 50  # steps whose mean loss is looked at
ROWS: list[dict[str, Any]] = []


def planned(overrides: list[str]) -> dict[str, Any]:
    """What `mmfusion plan --measure` counts and measures."""
    command = [*PROGRAM, "plan", "--measure", "--json", *overrides]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def state(size: list[str]) -> None:
    """Q7: bytes."""
    found = {name: planned([*size, f"optim={name}"]) for name in ("adamw", "adamw_8bit", "lion_8bit")}
    full = found["adamw"]["measured"]["state"]
    for name in ("adamw_8bit", "lion_8bit"):
        counted, taken = found[name]["memory"], found[name]["measured"]
        beside = {f"{key} MB, measured": value / 1e6 for key, value in taken.items()}
        beside |= {f"{key} MB, planned": counted[key] / 1e6 for key in ("weights", "gradients", "state", "activations")}
        beside["adamw: peak MB, measured"] = found["adamw"]["measured"]["peak"] / 1e6
        ROWS.append(
            row(f"Q7.bytes.{name}", f"state of {name} over that of adamw", taken["state"] / full, "", n=1,
                must="<= 0.3", beside=beside)
        )  # fmt: skip


def losses(work: Path, name: str, seed: int, how: list[str]) -> list[float]:
    """Means of the logged training losses over windows of steps; a run that was begun before is gone on with."""
    run = work / f"{name}-{seed}"
    given = [f"optim={name}", f"seed={seed}", f"paths.run={run}", "evaluation=none", "trainer.log_every_n_steps=1"]
    begun = (run / "resume").exists()
    command = [f"resume={run}"] if begun else [*given, "trainer.limit_val_batches=0", *how]
    seconds, _ = timed([*TRAIN, *command], work / f"{run.name}.log")
    print(f"{seconds:6.0f} s  {run.name}", flush=True)
    with (run / "metrics.csv").open() as file:
        logged = [float(line["train/loss"]) for line in csv.DictReader(file) if line.get("train/loss")]
    window = min(WINDOW, len(logged))
    return [statistics.mean(logged[first : first + window]) for first in range(0, len(logged) - window + 1, window)]


def curves(work: Path, how: list[str], seeds: tuple[int, ...]) -> None:
    """Q7: one run with eight bits from that with AdamW, same seed, in standard deviations of AdamW over seeds.

    On a CPU the state takes a core ten times as long to update, so that there is one such run.
    """
    eight = losses(work, "adamw_8bit", seeds[0], how)
    full = [losses(work, "adamw", seed, how) for seed in seeds]
    spread = statistics.mean(statistics.variance(window) for window in zip(*full, strict=True)) ** 0.5
    apart = [abs(b - a) / spread for a, b in zip(full[0], eight, strict=True)]
    beside = {f"adamw, window {k}": value for k, value in enumerate(full[0])}
    beside |= {f"adamw_8bit, window {k}": value for k, value in enumerate(eight)}
    ROWS.append(
        row("Q7.curve", f"largest gap of windows of {WINDOW} steps, same seed", max(apart),
            "standard deviations over seeds", n=len(seeds), must="<= 1", beside={**beside, "spread": spread})
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.optimizers.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder, and go on with them")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-optimizers-"))
    work.mkdir(parents=True, exist_ok=True)
    size = ["model=tiny" if options.quick else "model=small", "data.batch_size=8"]
    state(size)
    few = ["steps=4", "data.workers=0"] if options.quick else ["steps=500"]
    curves(work, [*size, *few, "optim.lr=5e-4"], SEEDS[:2] if options.quick else SEEDS)
    save(HERE / f"results.optimizers{'.quick' if options.quick else ''}.json", ROWS, COMMAND)


if __name__ == "__main__":
    main()
