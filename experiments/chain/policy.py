"""Reinforcement learning on what can be checked word for word: a model that answers, before and after, several seeds.

uv run python experiments/chain/policy.py --from RUN                 rows L5 of results.policy.json, of three seeds
uv run python experiments/chain/policy.py --from RUN --quick         the same path with few steps
uv run python experiments/chain/policy.py --from RUN --split validation steps=50     to try something else
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from experiments.chain.run import CACHE, asked
from experiments.processes import TRAIN, timed
from experiments.results import matrix_gflops, row, save

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/chain/policy.py --from RUN"
LIMIT = "evaluation.answers.limit=1000"  # questions of each kind
FEW = ["steps=4", "data.batch_size=8", "data.workers=0", "trainer.limit_val_batches=1"]
Rows = list[dict[str, Any]]


def trained(work: Path, answers: Path, seed: int, overrides: list[str]) -> tuple[Path, float]:
    """A run of `stage=policy` from a run that answers, and its seconds."""
    run = work / f"policy{seed}"
    given = [f"checkpoint={answers}", f"paths.run={run}", f"seed={seed}", "evaluation=none", "earlier={}"]
    seconds, _ = timed([*TRAIN, "stage=policy", *given, *overrides], work / f"policy{seed}.log")
    print(f"{seconds:6.0f} s  seed {seed}", flush=True)
    return run, seconds


def gains(found: Rows, before: str, seeds: dict[str, int]) -> Rows:
    """L5: of each seed and kind of question, exact answers after minus before."""
    base = {one["metric"]: one["value"] for one in found if one["checkpoint"] == before}
    rows = []
    for one in (one for one in found if "difference" in one):
        kind, gap = one["metric"].removesuffix(", exact"), one["difference"]
        judged = gap["ci95"] and not kind.startswith("about ")  # of one cluster there is no interval
        rows.append(row(f"L5.{kind.replace(' ', '-')}.{seeds[one['checkpoint']]}",
                        f"exact after policy minus before, {kind}", gap["value"], "", n=one["n"], ci95=gap["ci95"],
                        must="> 0" if judged else None, judged=gap["ci95"][0] if judged else None,
                        beside={"before": base[one["metric"]], "after": one["value"]}))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the training")
    parser.add_argument("--from", dest="answers", type=Path, required=True, help="a run of stage=finetune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.policy.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-policy-"))
    work.mkdir(parents=True, exist_ok=True)
    overrides = [*(FEW if options.quick else []), *options.overrides]
    runs = [trained(work, options.answers, seed, overrides) for seed in options.seeds]
    limit = "evaluation.answers.limit=8" if options.quick else LIMIT
    folders = [options.answers, *(run for run, _ in runs)]
    found = asked(work, "policy", folders, CACHE / "checks", "--split", options.split, "--task", "answers", limit)
    rows = gains(found, options.answers.name, {f"policy{seed}": seed for seed in options.seeds})
    seconds = {str(seed): one for seed, (_, one) in zip(options.seeds, runs, strict=True)}
    longest = max(seconds.values())
    rows.append(row("L5.seconds", "training of one seed, the longest", longest, "s", n=len(runs), must="<= 240",
                    beside={"matrix GFLOP/s": matrix_gflops(), **seconds}))  # fmt: skip
    quick = ".quick" if options.quick or options.split != "test" else ""
    save(HERE / f"results.policy{quick}.json", rows, COMMAND)


if __name__ == "__main__":
    main()
