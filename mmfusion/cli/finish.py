"""The end of a run: its checkpoint, evaluation, metrics and report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from mmfusion import api, checkpoint, config, report, runs
from mmfusion.checkpoint.layout import QUANTIZATION
from mmfusion.data.datamodule import DataModule
from mmfusion.data.shards import read_manifest
from mmfusion.evaluation import comparison
from mmfusion.evaluation import run as evaluate
from mmfusion.evaluation.bench import Bench
from mmfusion.evaluation.measure import Row, ask
from mmfusion.report import terminal
from mmfusion.runs import energy
from mmfusion.training.energy import metered
from mmfusion.training.health import without_gradient
from mmfusion.training.module import TrainingModule
from mmfusion.types import DataError


@dataclass(frozen=True)
class Earlier:
    """What an earlier stage was asked: its tasks, on the shards under `root`."""

    root: Annotated[str, MinLen(1)]
    tasks: Mapping[str, Callable[..., Any]]


def finish(
    tree: Mapping[str, Any],
    run: Path,
    module: TrainingModule,
    data: DataModule,
    tasks: Mapping[str, Callable[..., Any]],
    steps: int,
    seconds: dict[str, float],
    parent: Path | None,
    earlier: Mapping[str, Earlier],
) -> None:
    """Checkpoint, evaluation, metrics, report: everything from the checkpoint as saved, as a reader would load it."""
    runs.mark(run, "evaluating", step=steps)
    _save(tree, run, module, data, steps, parent)
    began = time.monotonic()
    # Own classes in this run's configuration: the user named them, on the command line or in their own files.
    allowed = {str(target) for part in (tree["model"], tree["data"]["pipeline"]) for _, target in config.targets(part)}
    with metered(api.load(run / "checkpoint", allow=allowed), run) as model:
        done = evaluate(model, tasks, data.root)
        compared = _before_and_after(earlier, parent, model, allowed) if parent and tasks else []
        seconds["evaluation"] = time.monotonic() - began
        examples = report.collect(model, done)
        spent = model.spent()
    for name, reason in done.left_out.items():
        print(f"task {name} left out: {reason}", flush=True)
    runs.write(run / "metrics.json", json.dumps(done.metrics, indent=1, ensure_ascii=False))
    counts = {f"skipped in training, {reason}": str(n) for reason, n in data.skips.skipped.items()}
    counts |= {f"skipped in validation, {reason}": str(n) for reason, n in data.validation_skips.skipped.items()}
    if data.masked:
        counts["values of series not measured, masked"] = str(data.masked)
    if still := without_gradient(run):
        counts["parameters that no gradient reached"] = ", ".join(still)
    report.write(
        run / "report.html",
        title=runs.without_secrets(str(tree["name"])),
        facts=report.facts_of(run, steps=steps, seconds=seconds),
        history=run / "metrics.csv",
        evaluation=done,
        examples=examples,
        answers=report.answered(done),
        counts=counts or {"samples skipped in training": "none"},
        earlier=compared,
        energy=spent,
    )
    card = report.card(runs.without_secrets(str(tree["name"])), read_manifest(data.root), done.metrics, model)
    checkpoint.write_card(run / "checkpoint", card)
    print(f"evaluated in {seconds['evaluation']:.0f} s\n")
    terminal.show(terminal.metrics(done.metrics))
    if compared:
        runs.write(run / "earlier.json", json.dumps(compared, indent=1, ensure_ascii=False))
        print(f"\nwhat earlier stages were asked, before and after: {run / 'earlier.json'}")
    print(f"\nenergy      {energy.line(spent)}")
    print(f"checkpoint  {run / 'checkpoint'}\nmetrics     {run / 'metrics.json'}")
    print(f"report      {run / 'report.html'}  (open it in a browser: {(run / 'report.html').resolve().as_uri()})")


def _save(
    tree: Mapping[str, Any], run: Path, module: TrainingModule, data: DataModule, steps: int, parent: Path | None
) -> None:
    """The checkpoint: of integers where a converter rounds."""
    config_of, rounded = {"model": tree["model"], "pipeline": tree["data"]["pipeline"]}, {}
    if module.quantizer:
        module.quantizer.convert(module.model)
        config_of[QUANTIZATION] = module.quantizer.node
        rounded = {"quantized": {"scheme": module.quantizer.scheme, "how": "rounded while it was trained"}}
    checkpoint.save(
        run / "checkpoint",
        config=config_of,
        model=module.model,
        tokenizer=data.tokenizer,
        lineage=checkpoint.lineage(
            stage=tree.get("stage", "pretrain"),  # a run from before there were stages
            step=steps,
            seed=int(tree["seed"]),
            data=data.root,
            commit=runs.commit(),
            parents=[*([parent] if parent else []), *(judge.folder for judge in module.judges())],
        )
        | rounded,
        card="",
    )


def _before_and_after(
    earlier: Mapping[str, Earlier], parent: Path, model: api.Model, allowed: Collection[str]
) -> list[Row]:
    """Rows of every earlier task, `before` and `after`; a stage whose shards are not there is named."""
    rows: list[Row] = []
    before = api.load(parent, allow=allowed) if earlier else model
    for stage, asked in earlier.items():
        try:
            bench = Bench(before, Path(asked.root))
        except DataError as error:
            print(f"what stage {stage} was asked is left out: {error}", flush=True)
            continue
        of_both = {"before": bench, "after": bench.with_model(model)}
        done = {name: ask(one, asked.tasks.items()) for name, one in of_both.items()}
        rows += [{"stage": stage, **row} for row in comparison.rows(done)]
    return rows
