"""What rounding to integers costs, with and without training for it, on the embedded sample.

uv run python experiments/quantization/run.py             rows of results.json, about 25 minutes on two cores
uv run python experiments/quantization/run.py --quick     the same path with few steps, within 180 s
uv run python experiments/quantization/run.py --pretrained RUN     from a run of `mmfusion train` that is there
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from experiments.processes import PROGRAM, TRAIN, timed
from experiments.results import row, save
from mmfusion import api, checkpoint, config
from mmfusion.checkpoint.layout import bytes_of
from mmfusion.cli.settle import settled
from mmfusion.converters.lora import Lora
from mmfusion.converters.quantize import Quantize
from mmfusion.objectives.captioning import Captioning
from mmfusion.types import Batch

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/quantization/run.py"
SAMPLE, CONVERSATIONS = Path("data_prep/sample"), Path("data_prep/cache/conversations")
SEEDS = (1, 2, 3)
MORE = ["steps=100", "optim.lr=5e-4"]  # the extra steps, of the model in full too
BY_ROW = 1024  # as many weights as a row has share a scale: where four bits cost most
ENOUGH = 500  # examples of different things, to judge a difference of one point by
ROUNDED = {
    "int8": ["converter=[int8]"],
    "int8 and lora": ["converter=[lora,int8]"],
    "int4": ["converter=[int4]", f"converter.int4.group={BY_ROW}"],
    "int4 distilled": ["converter=[int4]", f"converter.int4.group={BY_ROW}", "converter.int4.distillation=1.0"],
}
TOLERANCE = 1e-5  # of the norm; on one machine they are equal to the last bit
Rows = list[dict[str, Any]]


def trained(work: Path, parent: Path, name: str, seed: int, how: Sequence[str], *, evaluated: bool = False) -> Path:
    """A run of `mmfusion train`; one that is there already is taken as it is."""
    run = work / f"{name.replace(' ', '-')}-{seed}"
    if (run / "report.html").exists():
        return run
    given = [f"checkpoint={parent}", f"seed={seed}", f"paths.run={run}", *([] if evaluated else ["evaluation=none"])]
    seconds, _ = timed([*TRAIN, *given, *how], work / f"{run.name}.log")
    print(f"{seconds:6.0f} s  {run.name}", flush=True)
    return run


def quantized(work: Path, run: Path, scheme: str, *flags: str) -> Path:
    """What `mmfusion quantize` makes of a run."""
    out = work / "-".join([run.name, scheme, *(flag.strip("-").replace("/", "-") for flag in flags)])
    if not out.exists():
        timed([*PROGRAM, "quantize", str(run), "--scheme", scheme, "--out", str(out), *flags], work / f"{out.name}.log")
    return out


def compared(work: Path, before: Path, after: Path, *how: str) -> Rows:
    """What `mmfusion evaluate` says of two runs: the rows of the second, with paired differences to the first."""
    out = work / f"compared-{after.name}-{before.name}"
    if not (out / "metrics.json").exists():
        command = [*PROGRAM, "evaluate", str(before), str(after), "--out", str(out), *how]
        seconds, _ = timed(command, work / f"{out.name}.log")
        print(f"{seconds:6.0f} s  {out.name}", flush=True)
    return [one for one in json.loads((out / "metrics.json").read_text()) if "difference" in one]


def validation() -> list[Batch]:
    """The validation batches of the quickstart."""
    data = config.build(settled(config.compose(["paths.run=unused", "data.workers=0"]))["data"])
    data.prepare_data()
    data.setup("validate")
    return list(data.val_dataloader())


@torch.no_grad()
def nats(folder: Path, batches: Sequence[Batch]) -> float:
    """A checkpoint's cross-entropy of the validation captions, in nats a piece."""
    network, objective = api.load(folder).network, Captioning()
    losses = [objective(network(batch), batch)["captioning"] for batch in batches]
    return float(sum(float(loss.sum) for loss in losses)) / sum(loss.count for loss in losses)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean of a few."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return mean - half, mean + half


def eight_bits(by_seed: Sequence[Rows], id: str) -> Rows:
    """Q1: every task's paired difference to the model in full with the same extra steps."""
    rows = []
    for of_seeds in zip(*by_seed, strict=True):
        first = of_seeds[0]
        differences = [one["difference"]["value"] for one in of_seeds]
        lows, highs = ([one["difference"]["ci95"][end] for one in of_seeds] for end in (0, 1))
        beside = {f"seed {seed}": value for seed, value in zip(SEEDS, differences, strict=False)}
        metric = re.sub(r"\W+", "-", first["metric"].lower())
        rows.append(
            row(f"{id}.{first['task']}.{metric}", f"int8 minus full, {first['task']}: {first['metric']}",
                statistics.mean(differences), "", n=first["n"], ci95=[min(lows), max(highs)],
                must="> -0.01" if first["clusters"] >= ENOUGH else None, judged=min(lows),
                beside={**beside, "full": first["value"] - differences[0]})
        )  # fmt: skip
    return rows


def four_bits(work: Path, runs: dict[str, list[Path]]) -> Rows:
    """Q2: how much of what rounding costs is won back by training for it."""
    batches = validation()
    full = [nats(run, batches) for run in runs["full"]]
    flags = ["--group", str(BY_ROW)]
    nearest = [nats(quantized(work, run, "int4", *flags), batches) for run in runs["full"]]
    fitted = [nats(quantized(work, run, "int4", *flags, "--calibrate", str(SAMPLE)), batches) for run in runs["full"]]
    cost = [after - before for after, before in zip(nearest, full, strict=True)]
    spread = statistics.stdev(full) if len(full) > 1 else 0.0
    rows = [
        row("Q2.cost", "int4 by rows, rounded to nearest, minus full", statistics.mean(cost), "nats a piece",
            n=len(cost), ci95=interval(cost), must=f"> {3 * spread:.4f}", judged=min(cost),
            beside={"full": statistics.mean(full), "standard deviation of full over seeds": spread}),
    ]  # fmt: skip
    found = {name: [nats(run, batches) for run in runs[name]] for name in ("int4", "int4 distilled")}
    for name, reached in {**found, "int4 calibrated": fitted}.items():
        won = [(ptq - one) / (ptq - fp) for ptq, one, fp in zip(nearest, reached, full, strict=True)]
        beside = {"nats a piece": statistics.mean(reached), "rounded to nearest": statistics.mean(nearest)}
        rows.append(
            row(f"Q2.{name.removeprefix('int4').strip() or 'trained'}", f"share of it won back, {name}",
                statistics.mean(won), "", n=len(won), ci95=interval(won),
                must=None if "calibrated" in name else ">= 0.6", beside=beside)
        )  # fmt: skip
    return rows


def hops(work: Path, pretrained: Path) -> Rows:
    """Q3: rounded in training, converted, saved and loaded: the largest difference of any modality's output."""
    batch = validation()[0]
    config_of = checkpoint.load(pretrained)[1]
    rows = []
    for scheme in ("int8", "int8_int4", "int4"):
        for adapters in (False, True):
            network = api.load(pretrained).network
            quantize = Quantize(scheme=scheme)
            for convert in [Lora(parts=["decoder", "fusion"], rank=16)] if adapters else []:
                convert(network)
                _stir(network)
            quantize(network)
            outputs = [_outputs(network.eval(), batch)]
            outputs.append(_outputs(quantize.convert(network), batch))
            folder = work / f"hop-{scheme}-{adapters}"
            checkpoint.save(
                folder, config={**config_of, "quantization": quantize.node}, model=network,
                tokenizer=checkpoint.locate(pretrained) / checkpoint.TOKENIZER, lineage={}, card="",
            )  # fmt: skip
            outputs.append(_outputs(checkpoint.load(folder)[0], batch))
            named = f"{scheme} {'with adapters' if adapters else 'alone'}: largest difference of any output"
            for hop, pair in zip(("converted", "reloaded"), itertools.pairwise(outputs), strict=True):
                far = {name: float((pair[0][name] - x).norm() / x.norm()) for name, x in pair[1].items()}
                rows.append(
                    row(f"Q3.{hop}.{scheme}{'.adapters' * adapters}", f"{hop}, {named}", max(far.values()),
                        "of its norm", n=len(far), must=f"<= {TOLERANCE}", beside=far)
                )  # fmt: skip
    return rows


def _stir(network: Any) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if ".lora_B" in name:
                weight.normal_(std=0.02)


@torch.no_grad()
def _outputs(network: Any, batch: Batch) -> dict[str, Tensor]:
    out = network(batch)
    return {**out.embeddings, "logits": out.hidden[batch.rows.document >= 0] @ out.unembedding.T}


def sizes(work: Path, pretrained: Path) -> Rows:
    """Q4: whole folders."""
    full = bytes_of(checkpoint.locate(pretrained))
    return [
        row(f"Q4.{scheme}", f"folder of {scheme} over that in full",
            bytes_of(quantized(work, pretrained, scheme)) / full, "", n=1, must=f"<= {most}",
            beside={"full MB": full / 1e6})
        for scheme, most in (("int8", 0.30), ("int8_int4", 0.22), ("int4", 0.22))
    ]  # fmt: skip


def answers(work: Path, pretrained: Path, seeds: Sequence[int], few: list[str]) -> Rows:
    """Q1 on what a model learns to answer: the same, behind `stage=finetune`."""
    limit = ["evaluation.answers.limit=8"] if few else []
    parent = trained(work, pretrained, "answers", 0, ["stage=finetune", "earlier={}", *few])
    more = ["stage=finetune", "earlier={}", "steps=50", "optim.lr=3e-4", *few]
    by_seed = []
    for seed in seeds:
        full, int8 = (trained(work, parent, f"answers {name}", seed, [*more, *how])
                      for name, how in {"full": [], "int8": ["converter=[int8]"]}.items())  # fmt: skip
        by_seed.append(compared(work, full, int8, "--data-root", str(CONVERSATIONS), "--task", "answers", *limit))
    return eight_bits(by_seed, "Q1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.quick.json")
    parser.add_argument("--pretrained", type=Path, help="begin with this run, or checkpoint")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder, and go on with them")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-quantization-"))
    work.mkdir(parents=True, exist_ok=True)
    few = ["steps=3", "data.batch_size=16", "data.workers=0"] if options.quick else []
    seeds = SEEDS[:1] if options.quick else SEEDS
    pretrained = options.pretrained
    if pretrained is None:
        pretrained = work / "pretrained"
        timed([*TRAIN, f"paths.run={pretrained}", *few, "evaluation=none"], work / "pretrained.log")

    runs: dict[str, list[Path]] = {}
    for name, how in {"full": [], **ROUNDED}.items():
        runs[name] = [trained(work, pretrained, name, seed, [*MORE, *how, *few]) for seed in seeds]
    on_sample = ["evaluation=sample", *(["--task", "watch_exercise"] if options.quick else [])]
    rows = eight_bits(
        [compared(work, *both, *on_sample) for both in zip(runs["full"], runs["int8"], strict=True)], "Q1"
    )
    rows += answers(work, pretrained, seeds, few)
    rows += four_bits(work, runs)
    rows += hops(work, pretrained)
    rows += sizes(work, pretrained)
    with_adapters = [
        compared(work, *both, *on_sample) for both in zip(runs["int8"], runs["int8 and lora"], strict=True)
    ]
    for one in eight_bits(with_adapters, "Q6"):
        rows.append({**one, "what": one["what"].replace("int8 minus full", "int8 with adapters minus int8 alone"),
                     "must": None, "met": None})  # fmt: skip
    save(HERE / ("results.quick.json" if options.quick else "results.json"), rows, COMMAND)


if __name__ == "__main__":
    main()
