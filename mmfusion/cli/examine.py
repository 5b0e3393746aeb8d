"""`mmfusion evaluate` from checkpoints to tables and files: one, several, or one run along its training."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfusion import api, runs
from mmfusion.cli.asked import Asked
from mmfusion.data.shards import ShardSet
from mmfusion.evaluation import comparison, points
from mmfusion.evaluation.bench import Bench, Split
from mmfusion.evaluation.measure import NO_BASELINES, Evaluation, ask
from mmfusion.progress import tracked
from mmfusion.report import answered, collect, terminal, write
from mmfusion.report.evaluation import write_along, write_compared
from mmfusion.runs import RunError

FEW = 3  # points that are hardly a curve


def single(about: Asked, split: Split, allow: Collection[str], out: Path | None) -> int:
    """One checkpoint: its metrics, the page with examples."""
    ((name, folder),) = about.folders.items()
    model = api.load(folder, allow)
    done = _each(about, split, [(name, model)])[name]
    if done.metrics:
        terminal.show(terminal.metrics(done.metrics))
    page = {"title": name, "facts": _facts(about, split), "history": Path(), "counts": {}}
    if out:
        write(out / "evaluation.html", **page, evaluation=done, examples=collect(model, done), answers=answered(done))
    return _ended({name: done}, done.metrics, out)


def several(about: Asked, split: Split, allow: Collection[str], out: Path | None) -> int:
    """Checkpoints beside one another, with the differences to the first."""
    done = _each(about, split, ((name, api.load(folder, allow)) for name, folder in about.folders.items()))
    rows = comparison.rows(done)
    if rows:
        terminal.show(terminal.compared(rows), columns=len(done))
        print(f"\nbelow each value: its difference to {next(iter(done))}, paired by example, with its 95% interval")
    if out:
        write_compared(out / "evaluation.html", rows, _facts(about, split))
    return _ended(done, rows, out)


def along(about: Asked, split: Split, allow: Collection[str], out: Path | None) -> int:
    """One run at every step at which its weights were kept."""
    ((name, folder),) = about.folders.items()
    done = _each(about, split, ((f"step {step}", model) for step, model in points.along(folder, allow)))
    rows = comparison.rows(done)
    if rows:
        terminal.show(terminal.along(rows), columns=min(len(done), terminal.COLUMNS))
    if len(done) < FEW:
        print(f"\npoints kept: {len(done)}, hardly a curve; train with callbacks.resume.save_top_k=-1 to keep all")
    if out:
        write_along(out / "evaluation.html", rows, {"Run": name, **_facts(about, split)})
    return _ended(done, rows, out)


def _each(about: Asked, split: Split, models: Iterable[tuple[str, api.Model]]) -> dict[str, Evaluation]:
    """All tasks of each model; the shards are read and decoded once."""
    done: dict[str, Evaluation] = {}
    bench: Bench | None = None
    for name, model in models:
        bench = bench.with_model(model) if bench else _bench(about.root, split, model)
        done[name] = ask(bench, tracked(about.tasks.items(), f"{name}: tasks", len(about.tasks)))
    return done


def _bench(root: Path, split: Split, model: api.Model) -> Bench:
    bench = Bench(model, root, split)
    ShardSet(root, split, bench.entries)  # which says what splits there are, where this one is not
    return bench


def ready(out: Path) -> None:
    """Make the folder for what will be written. Raises RunError: before the evaluation, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "no permission")
    except OSError as error:
        raise RunError(f"{out}: cannot write there ({error.strerror}); choose another with --out FOLDER") from error


def _facts(about: Asked, split: Split) -> dict[str, str]:
    return {"Checkpoints": ", ".join(map(str, about.folders.values())), "Shards": str(about.root), "Split": split}


def _ended(done: Mapping[str, Evaluation], rows: Sequence[Mapping[str, Any]], out: Path | None) -> int:
    """What was left out and written; 1 where no task could be asked of any checkpoint."""
    for name, evaluation in done.items():
        of = f" for {name}" if len(done) > 1 else ""
        for task, reason in evaluation.left_out.items():
            print(f"task {task} left out{of}: {reason}", file=sys.stderr)
    if rows and next(iter(done.values())).split == "train":
        print(f"\n{NO_BASELINES}")
    skipped = next(iter(done.values())).skipped
    if skipped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in skipped.items())
        print(f"parts that could not be read: {reasons}", file=sys.stderr)
    if not rows:
        told = "; ".join(f"{task}: {reason}" for task, reason in next(iter(done.values())).left_out.items())
        print(f"mmfusion: no task could be asked on these shards ({told})", file=sys.stderr)
        return 1
    if out:
        runs.write(out / "metrics.json", json.dumps(rows, indent=1, ensure_ascii=False))
        print(f"\nmetrics  {out / 'metrics.json'}\npage     {(out / 'evaluation.html').resolve().as_uri()}")
    return 0
