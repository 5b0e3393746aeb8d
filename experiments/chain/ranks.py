"""Two ranks: the gradients of one (L6), thousands of steps with modalities absent on either (L7), the end of one.

uv run python experiments/chain/ranks.py             rows of results.ranks.json, about 10 minutes on two cores
uv run python experiments/chain/ranks.py --quick     the same path with few steps, within 180 s
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch.callbacks import Callback

from experiments.processes import TRAIN, timed
from experiments.results import row, save
from mmfusion.data.select import Select
from mmfusion.ranks import of_all
from mmfusion.types import Batch, Sample

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/chain/ranks.py"
HERE_NAMED = "experiments.chain.ranks"
FEW_SAMPLES = "data.batch_size=8"  # of which a rank, or a stripe, has no more than four: modalities are absent
STILL = ["optim.lr=0.0", "data.workers=0", "evaluation=none", "callbacks=[]", FEW_SAMPLES]
LAYOUTS = {
    "one rank, twice the accumulation": ["trainer.accumulate_grad_batches=2"],
    "two ranks": ["trainer=ddp"],
    "two ranks, twice the accumulation": ["trainer=ddp", "trainer.accumulate_grad_batches=2"],
}
Rows = list[dict[str, Any]]


class KeepGradients(Callback):
    """Each step's gradients, before they are clipped, as `folder/STEP.pt`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            torch.save(kept, self.folder / f"{trainer.global_step}.pt")


class AnySubset(Select):
    """Of what a sample has a random subset of its modalities, at least one."""

    def __call__(self, sample: Sample, seed: int) -> Sample:
        sample = super().__call__(sample, seed)
        kinds = sorted({part.type for part in sample.parts})
        rng = random.Random(f"subset {seed}")
        kept = rng.sample(kinds, rng.randint(1, len(kinds)))
        return dataclasses.replace(sample, parts=tuple(part for part in sample.parts if part.type in kept))


class CountAbsent(Callback):
    """Which modalities each rank had: in how many steps one was on one rank alone, and in how many ways; in `file`."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.unequal = self.steps = 0
        self.ways: set[tuple[str, ...]] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        everyone = of_all("+".join(name for name, parts in batch.streams.items() if bool((parts.owner >= 0).any())))
        self.steps += 1
        self.unequal += any(one != everyone[0] for one in everyone)
        self.ways.add(tuple(everyone))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            told = {"steps": self.steps, "unequal": self.unequal, "ways": len(self.ways)}
            self.file.write_text(json.dumps(told))


def gradients(work: Path, name: str, how: Sequence[str], steps: int, layouts: Sequence[str]) -> Rows:
    """L6: gradients of the same global batches, of the same weights, in several layouts."""
    found = {}
    for layout in ("one rank", *layouts):
        folder = work / name / layout.replace(" ", "-").replace(",", "")
        kept = [f"+callbacks.kept._target_={HERE_NAMED}.KeepGradients", f"+callbacks.kept.folder={folder}/gradients"]
        arguments = [*TRAIN, *how, *STILL, *LAYOUTS.get(layout, []), *kept, f"steps={steps}", f"paths.run={folder}/run"]
        timed(arguments, work / f"{name}.log")
        found[layout] = [torch.load(folder / "gradients" / f"{step}.pt") for step in range(steps)]
    rows = []
    for layout in layouts:
        pairs = list(zip(found["one rank"], found[layout], strict=True))
        assert all(a.keys() == b.keys() for a, b in pairs)
        apart = max(float((a[key] - b[key]).abs().max()) for a, b in pairs for key in a)
        largest = max(float(a[key].abs().max()) for a, _ in pairs for key in a)
        what = f"{name}: largest difference of a gradient, one rank and {layout}"
        rows.append(row(f"L6.{name}", what, apart, "", n=steps, must="<= 1e-5", beside={"largest gradient": largest}))
        print(f"{apart:.2e} of {largest:.2e}  {what}", flush=True)
    return rows


def long_run(work: Path, steps: int) -> Rows:
    """L7: steps of four samples, two on each rank, so that modalities come and go on either."""
    file = work / "absent.json"
    counted = [f"+callbacks.count._target_={HERE_NAMED}.CountAbsent", f"+callbacks.count.file={file}"]
    how = ["trainer=ddp", "data.batch_size=4", "data.workers=0", "evaluation=none", f"steps={steps}", *counted]
    how.append(f"data.select._target_={HERE_NAMED}.AnySubset")
    seconds, _ = timed([*TRAIN, *how, f"paths.run={work / 'long'}"], work / "long.log")
    told = json.loads(file.read_text())
    beside = {"with a modality on one rank alone": told["unequal"], "different pairs of subsets": told["ways"],
              "seconds": seconds}  # fmt: skip
    what = "steps on two ranks, a random subset of modalities on each, without a hang or an unused parameter"
    return [row("L7", what, told["steps"], "steps", n=told["unequal"], must=f">= {steps}", beside=beside)]


def death(work: Path) -> Rows:
    """How long a run lives on when its second rank is killed, and whether it names it."""
    run, log = work / "killed", work / "killed.log"
    how = ["trainer=ddp", FEW_SAMPLES, "data.workers=0", "evaluation=none", "callbacks.resume.every_n_train_steps=2"]
    with log.open("w") as out:
        first = subprocess.Popen([*TRAIN, *how, "steps=5000", f"paths.run={run}"], stdout=out, stderr=out)
    while not list(run.glob("resume/step=*.ckpt")):
        if first.poll() is not None:
            raise SystemExit(f"ended before a step: {log.read_text()}")
        time.sleep(0.1)
    (second,) = [p for p in psutil.Process(first.pid).children() if "train" in p.cmdline()]
    second.kill()
    began = time.monotonic()
    status = first.wait(120)
    seconds = time.monotonic() - began
    last = log.read_text().strip().splitlines()[-1]
    print(f"{seconds:.1f} s, status {status}: {last}", flush=True)
    assert status == 1
    assert last.startswith("mmfusion: rank 1 was ended by SIGKILL; go on with: mmfusion train resume=")
    what = "from the death of a rank to the end of the run, which names it"
    return [row("ranks.death", what, seconds, "s", n=1, must="<= 60")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.ranks.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-ranks-"))
    work.mkdir(parents=True, exist_ok=True)
    steps = 2 if options.quick else 8
    layouts = list(LAYOUTS)
    rows = gradients(work, "captioning", ["~objective.contrastive"], steps, layouts[1:2] if options.quick else layouts)
    rows += gradients(work, "contrastive", [], steps, ["two ranks"])
    if not options.quick:
        start = work / "start"
        timed([*TRAIN, "steps=20", "evaluation=none", f"paths.run={start}"], work / "start.log")
        rows += gradients(work, "preference", ["stage=preference", f"checkpoint={start}"], steps, layouts)
    rows += long_run(work, 20 if options.quick else 2000)
    rows += death(work)
    save(HERE / ("results.ranks.quick.json" if options.quick else "results.ranks.json"), rows, COMMAND)


if __name__ == "__main__":
    main()
