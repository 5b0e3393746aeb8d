"""Several evaluations of the same examples beside one another, each with its difference to the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmfusion.evaluation.bench import Outcome
from mmfusion.evaluation.measure import Evaluation, Row
from mmfusion.evaluation.statistics import difference


def rows(evaluations: Mapping[str, Evaluation], seed: int = 0) -> list[Row]:
    """The rows of all evaluations, each with its `checkpoint`; means after the first with `difference` or `unpaired`.

    `difference` holds this checkpoint minus the first one, its interval paired by example, whole clusters drawn
    together; `unpaired` says why there is none. The median of differences is no difference of medians.
    """
    first = next(iter(evaluations))
    known = _outcomes(evaluations[first])
    made: list[Row] = []
    for name, evaluation in evaluations.items():
        ours = _outcomes(evaluation)
        for row in evaluation.metrics:
            which = row["task"], row["metric"]
            beside = {} if name == first else _against(ours[which], known.get(which), seed)
            made.append({"checkpoint": name, **row, **beside})
    return made


def _outcomes(evaluation: Evaluation) -> dict[tuple[str, str], Outcome]:
    return {(task, one.metric): one for task, result in evaluation.results.items() for one in result.outcomes}


def _against(ours: Outcome, theirs: Outcome | None, seed: int) -> dict[str, Any]:
    if ours.statistic != "mean":
        return {}
    if theirs is None:
        return {"unpaired": "the first was not asked this"}
    if list(ours.clusters) != list(theirs.clusters):
        return {"unpaired": "not the same examples"}
    gap = difference(ours.values, theirs.values, ours.clusters, seed=seed)
    return {"difference": {"value": gap.value, "ci95": gap.ci95}}
