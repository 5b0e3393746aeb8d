"""Runs tasks on a model and makes their outcomes into the rows of metrics.json."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.evaluation.bench import Bench, Embedder, Lacking, Outcome, Result, Split
from mmfusion.evaluation.statistics import difference, estimate

Task = Callable[[Bench], Result]
Row = dict[str, Any]  # task, metric, value, n, clusters, ci95, chance, baselines {name: value}, differences, subset

NO_BASELINES = "On the training split there are no baselines: they learn from it and would find what is asked about."


@dataclass(frozen=True)
class Evaluation:
    """`metrics` are the rows of metrics.json; `results` what they were made of; `left_out` says why a task is missing.

    `skipped` counts parts that could not be decoded, by reason; `seconds` is what each task took, `about` what it asks.
    """

    split: Split
    metrics: list[Row]
    results: dict[str, Result]
    left_out: dict[str, str]
    skipped: dict[str, int]
    seconds: dict[str, float]
    about: dict[str, str]


def run(model: Embedder, tasks: Mapping[str, Task], root: Path, split: Split = "test", seed: int = 0) -> Evaluation:
    """Ask every task of the model on one split of the shards below `root`; what lacks its data is left out by name."""
    return ask(Bench(model, root, split), tasks.items(), seed)


def ask(bench: Bench, tasks: Iterable[tuple[str, Task]], seed: int = 0) -> Evaluation:
    """`run` for a model that stands before its shards already; on the training split no outcome has baselines."""
    metrics: list[Row] = []
    results: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    about: dict[str, str] = {}
    for name, task in tasks:
        began = time.monotonic()
        try:
            result = task(bench)
        except Lacking as error:
            left_out[name] = str(error)
            continue
        results[name] = _without_baselines(result) if bench.split == "train" else result
        metrics += [row(name, outcome, seed) for outcome in results[name].outcomes]
        seconds[name] = time.monotonic() - began
        about[name] = " ".join([_first_paragraph(task), *([NO_BASELINES] if bench.split == "train" else [])])
    return Evaluation(bench.split, metrics, results, left_out, dict(bench.skipped), seconds, about)


def _without_baselines(result: Result) -> Result:
    return replace(result, outcomes=tuple(replace(outcome, baselines={}) for outcome in result.outcomes))


def _first_paragraph(task: Task) -> str:
    function = task.func if isinstance(task, functools.partial) else task
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def row(task: str, outcome: Outcome, seed: int = 0) -> Row:
    """One row of metrics.json. `differences` holds ours minus each baseline with its interval, paired by example.

    A baseline of a median is given without a difference: the median of differences is not the difference of medians.
    """
    got = estimate(outcome.values, outcome.clusters, statistic=outcome.statistic, seed=seed)
    middle = np.mean if outcome.statistic == "mean" else np.median
    beside = {name: float(middle(values)) for name, values in outcome.baselines.items()}
    gaps = {}
    if outcome.statistic == "mean":
        for name, values in outcome.baselines.items():
            gap = difference(outcome.values, values, outcome.clusters, seed=seed)
            gaps[name] = {"value": gap.value, "ci95": gap.ci95}
    subset = {"subset": list(outcome.subset)} if outcome.subset else {}
    return {
        "task": task,
        "metric": outcome.metric,
        "value": got.value,
        "n": got.n,
        "clusters": got.clusters,
        "ci95": got.ci95,
        "chance": outcome.chance,
        "baselines": beside,
        "differences": gaps,
        **subset,
    }
