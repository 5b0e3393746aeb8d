"""The lineage on the embedded sample: a pretrained model learns to answer, then to answer better.

uv run python experiments/chain/run.py             rows of results.json, about 20 minutes on two cores
uv run python experiments/chain/run.py --quick     the same path with few steps, within 180 s
uv run python experiments/chain/run.py --pretrained RUN     from a run of `mmfusion train` that is there
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

import data_prep.preferences
from data_prep import derived
from experiments.processes import PROGRAM, TRAIN, timed
from experiments.results import matrix_gflops, row, save
from mmfusion.evaluation.bench import Split
from mmfusion.types import Part, Sample

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/chain/run.py"
CACHE = Path("data_prep/cache")
SAMPLE = Path("data_prep/sample")
ENOUGH = 500  # examples to judge a difference of three points by
PAIRS = ("near-name", "grounded", "wrong-language", "spoken-language", "wrong-activity")
FEW = ["steps=4", "data.batch_size=16", "data.workers=0"]
Rows = list[dict[str, Any]]


def chain(work: Path, pretrained: Path, overrides: list[str]) -> tuple[Rows, Path, Path]:
    """L1: the three commands after pretraining, each a process."""
    answers, better = work / "answers", work / "better"
    commands = {
        "finetune": [*TRAIN, "stage=finetune", f"checkpoint={pretrained}", f"paths.run={answers}", *overrides],
        "preference": [*TRAIN, "stage=preference", f"checkpoint={answers}", f"paths.run={better}", *overrides],
        "generate": [*PROGRAM, "generate", str(better), "--image", str(picture(work)), "--prompt", "What do you see?"],
    }
    seconds: dict[str, float] = {}
    for name, command in commands.items():
        seconds[name], _ = timed(command, work / f"{name}.log")
        print(f"{seconds[name]:6.0f} s  {name}", flush=True)
    print((work / "generate.log").read_text().strip(), flush=True)
    beside = {"matrix GFLOP/s": matrix_gflops(), **seconds}
    total = row("L1", "the chain after pretraining", sum(seconds.values()), "s", n=1, must="<= 600", beside=beside)
    return [total], answers, better


def picture(work: Path) -> Path:
    """The first picture of the other vendor, as a file."""
    from mmfusion.data.shards import ShardSet

    (part, *_) = ShardSet(SAMPLE, "test").read(0).of("image")
    assert isinstance(part.data, bytes)
    path = work / "picture.png"
    path.write_bytes(part.data)
    return path


def asked(work: Path, name: str, runs: Iterable[Path], root: Path, *how: str) -> Rows:
    """What `mmfusion evaluate` says of runs on the test split of `root`."""
    out = work / f"evaluated-{name}"
    command = [*PROGRAM, "evaluate", *map(str, runs), "--data-root", str(root), "--out", str(out), *how]
    timed(command, work / f"evaluate-{name}.log")
    return json.loads((out / "metrics.json").read_text())


def questions(found: Rows) -> Rows:
    """L2: by modality, exact answers to questions in words that training did not use."""
    rows = []
    for one in found:
        about, _, metric = one["metric"].partition(", ")
        if not about.startswith("about "):
            continue
        gaps = {name: gap["ci95"][0] for name, gap in one["differences"].items()}
        beside = {**one["baselines"], **{f"least gain on {name}": low for name, low in gaps.items()}}
        rows.append(row(f"L2.{about.removeprefix('about ').replace(' ', '-')}", f"questions {about}, {metric}",
                        one["value"], "", n=one["n"], ci95=one["ci95"], must="> 0", judged=min(gaps.values()),
                        beside=beside))  # fmt: skip
    return rows


def preferences(found: Rows) -> Rows:
    """L3: by kind of pair, how often the right answer has gained on the wrong one."""
    of = {one["metric"].removesuffix(", reward"): one for one in found if one["metric"].endswith(", reward")}
    rows = [
        row(f"L3.{kind}", f"accuracy of the implicit reward, {kind}", one["value"], "", n=one["n"], ci95=one["ci95"])
        for kind, one in of.items()
    ]
    values = [of[kind]["value"] for kind in PAIRS]
    n = sum(of[kind]["n"] for kind in PAIRS)
    return [
        row("L3.worst", "the worst of five kinds: name, language, speech, activity, grounding", min(values), "", n=n,
            must=">= 0.65"),
        row("L3.mean", "mean over these kinds", statistics.mean(values), "", n=n, must=">= 0.75"),
        *rows,
    ]  # fmt: skip


def answered(found: Rows) -> Rows:
    """L3: whether exact answers fall from the first checkpoint to the second."""
    return [
        row("L3.answers", f"after preferences minus before, questions {one['metric']}", one["difference"]["value"], "",
            n=one["n"], ci95=one["difference"]["ci95"], must=">= 0")
        for one in found
        if "difference" in one and one["metric"].startswith("about ")
    ]  # fmt: skip


def kept(found: Rows) -> Rows:
    """L3: what the preference stage did to the tasks of pretraining; of few examples it stays undecided."""
    return [
        row("L3.before", f"after preferences minus before, {one['task']}: {one['metric']}", one["difference"]["value"],
            "", n=one["n"], ci95=one["difference"]["ci95"], must="> -0.03" if one["n"] >= ENOUGH else None,
            judged=one["difference"]["ci95"][0])
        for one in found
        if "difference" in one
    ]  # fmt: skip


def rewards(work: Path, answers: Path, overrides: list[str], limit: int, split: Split = "test") -> Rows:
    """L4: a reward model's held-out pairs against those of one that was trained the same way on the answers alone."""
    from mmfusion import api
    from mmfusion.evaluation.bench import Bench
    from mmfusion.evaluation.questions import clusters_of, pairs, won
    from mmfusion.evaluation.statistics import difference, estimate

    derived.prepare(work / "alone", SAMPLE, answers_alone, [Path(__file__), Path(data_prep.preferences.__file__)])
    runs = {"reward": CACHE / "preferences", "answers only": work / "alone"}
    models: list[api.Model] = []
    for name, root in runs.items():
        run = work / name.replace(" ", "-")
        given = [f"checkpoint={answers}", f"data.root={root}", f"paths.run={run}", "evaluation=none", *overrides]
        timed([*TRAIN, "stage=reward", *given], work / f"{run.name}.log")
        models.append(api.load(run))
    reward, only = models
    rows = []
    found = pairs(Bench(reward, CACHE / "preferences", split), None, limit)
    for kind, asked in {"all": [pair for of_kind in found.values() for pair in of_kind], **found}.items():
        clusters, right = clusters_of(asked), won(reward, asked)
        blind = won(only, [(without_prompt(sample), better) for sample, better in asked])
        got, gap = estimate(right, clusters), difference(right, blind, clusters)
        beside = {"reward": got.value, "answers only": float(blind.mean())}
        judged = {"must": "> 0", "judged": gap.ci95[0]} if kind == "all" and gap.ci95 else {}
        what = f"accuracy of rewards minus that of a model of the answers alone, pairs: {kind}"
        rows.append(row(f"L4.{kind}", what, gap.value, "", n=gap.n, ci95=gap.ci95, beside=beside, **judged))
    return rows


def without_prompt(sample: Sample) -> Sample:
    """A pair whose prompt says nothing of its answers: the same mark for all, since none may be empty."""
    return dataclasses.replace(sample, parts=(Part(type="text", role="user", text="?"),))


def answers_alone(root: Path, split: str) -> Iterator[Sample]:
    """All pairs about the samples of one split, without their prompts."""
    return map(without_prompt, data_prep.preferences.preferences(root, split))


def personal(better: Path) -> Rows:
    """L9: the adapter's bytes beside the base's, and memory while a hundred are switched in turn."""
    from mmfusion import api
    from mmfusion.checkpoint import ADAPTER, WEIGHTS, adapter
    from mmfusion.checkpoint.layout import sha256
    from mmfusion.converters import lora

    folder = better / "checkpoint"
    share = sum(p.stat().st_size for p in (folder / ADAPTER).iterdir()) / (folder / WEIGHTS).stat().st_size
    network, base = api.load(folder).network, sha256(folder / WEIGHTS)
    names = [f"user{k}" for k in range(100)]
    for name in names:
        adapter.load_adapter(folder / ADAPTER, network, base, name)
    process = psutil.Process()
    for name in names:
        lora.use(network, name)
    before = process.memory_info().rss
    for name in names * 3:
        lora.use(network, name)
    grown = (process.memory_info().rss - before) / 1e6
    return [
        row("L9.bytes", "a personal adapter's share of the base's bytes", share, "", n=1, must="< 0.02"),
        row(
            "L9.memory", "growth of memory while 100 are switched in turn, three times", grown, "MB", n=300, must="< 1"
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.quick.json")
    parser.add_argument("--pretrained", type=Path, help="begin with this run, or checkpoint")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-chain-"))
    work.mkdir(parents=True, exist_ok=True)
    few = FEW if options.quick else []
    pretrained = options.pretrained
    if pretrained is None:
        pretrained = work / "pretrained"
        timed([*TRAIN, f"paths.run={pretrained}", *few, "evaluation=none"], work / "pretrained.log")
    quick = ["evaluation.answers.limit=8"] if options.quick else []
    quick_pairs = ["evaluation.preferred.limit=8"] if options.quick else []
    rows, answers, better = chain(work, pretrained, [*few, "evaluation=none"] if options.quick else few)
    talks = asked(work, "answers", [answers, better], CACHE / "conversations", "--task", "answers", *quick)
    rows += questions([one for one in talks if one["checkpoint"] == answers.name])
    rows += rewards(work, answers, few, 8 if options.quick else 512)
    pairs = asked(work, "preferred", [better], CACHE / "preferences", "--task", "preferred", *quick_pairs)
    rows += preferences(pairs)
    rows += answered(talks)
    if not options.quick:
        rows += kept(asked(work, "before", [answers, better], SAMPLE, "evaluation=sample"))
    rows += personal(better)
    save(HERE / ("results.quick.json" if options.quick else "results.json"), rows, COMMAND)


if __name__ == "__main__":
    main()
