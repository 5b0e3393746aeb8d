"""Differences between evaluations: paired by example, and none where there is no pair."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.evaluation import comparison
from mmfusion.evaluation.bench import Outcome, Result
from mmfusion.evaluation.measure import Evaluation, row
from mmfusion.evaluation.statistics import difference


def evaluation(*outcomes: Outcome) -> Evaluation:
    return Evaluation("test", [row("t", one) for one in outcomes], {"t": Result(outcomes)}, {}, {}, {}, {})


def test_the_difference_is_that_of_the_examples() -> None:
    clusters = [str(i // 2) for i in range(20)]
    ours, theirs = np.arange(20) % 3 == 0, np.arange(20) % 2 == 0
    done = {
        "a": evaluation(Outcome("m", theirs.astype(float), clusters, 0.1)),
        "b": evaluation(Outcome("m", ours.astype(float), clusters, 0.1)),
    }
    first, second = comparison.rows(done)
    assert "difference" not in first
    expected = difference(ours.astype(float), theirs.astype(float), clusters)
    assert second["difference"] == {"value": expected.value, "ci95": expected.ci95}
    assert second["difference"]["value"] == pytest.approx(ours.mean() - theirs.mean())
    assert {**second, "checkpoint": "a"} != first  # each keeps its own value


def test_other_examples_other_metrics_and_medians_have_no_difference() -> None:
    values = np.array([1.0, 0.0])
    rank = Outcome("rank", values, ["x", "y"], 1, statistic="median")
    new = Outcome("new", values, ["x", "y"], 0.5)
    done = {
        "a": evaluation(Outcome("m", values, ["x", "y"], 0.5), rank),
        "b": evaluation(Outcome("m", values, ["x", "z"], 0.5), new, rank),
    }
    made = {r["metric"]: r for r in comparison.rows(done) if r["checkpoint"] == "b"}
    assert made["m"]["unpaired"] == "not the same examples"
    assert made["new"]["unpaired"] == "the first was not asked this"
    assert not {"difference", "unpaired"} & set(made["rank"])
