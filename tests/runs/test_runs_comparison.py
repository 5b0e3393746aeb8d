"""Runs beside one another: what differs, and what must not be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmfusion import runs
from mmfusion.runs.comparison import Comparison, compare
from tests.runs.tiny_runs import make, measured


def two(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> Comparison:
    return compare([make(tmp_path / "a", **first), make(tmp_path / "b", **second)])


def test_only_leaves_that_differ_are_told(tmp_path: Path) -> None:
    def tree(lr: float, folder: str) -> dict[str, Any]:
        return {
            "optim": {"_target_": "torch.optim.AdamW", "lr": lr, "betas": [0.9, 0.99]},
            "callbacks": {"best": {"dirpath": f"{tmp_path / folder}/resume"}},
            "weights": {},
        }

    ours, theirs = tree(0.1, "a"), tree(0.2, "b")
    theirs["callbacks"]["stop"] = {"_target_": "lightning.EarlyStopping", "_partial_": True, "patience": 3}
    theirs["weights"] = {"captioning": 0.5}
    found = two(tmp_path, {"config": ours}, {"config": theirs})
    assert found.differences == {
        "optim.lr": ["0.1", "0.2"],
        "callbacks.stop": [None, "EarlyStopping(patience=3)"],
        "weights.captioning": [None, "0.5"],
    }


def test_like_runs_have_nothing_to_note(tmp_path: Path) -> None:
    found = two(tmp_path, {"metrics": [measured(0.2)]}, {"metrics": [measured(0.3)]})
    assert (found.differences, found.notes) == ({}, [])
    assert [row and row.value for row in found.metrics["naming/R@1"]] == [0.2, 0.3]


@pytest.mark.parametrize(
    ("second", "note"),
    [
        ({"data": "e" * 64}, "Not comparable: these runs had different data (A: ffffffff; B: eeeeeeee)."),
        ({"data": None}, "The data of B is not known"),
        ({"metrics": [measured(0.2, n=50)]}, "Not of the same examples (n or chance differ): naming/R@1."),
        ({"metrics": []}, "Not evaluated, so without metrics: B."),
        ({"state": "stopped", "config": {"steps": 9}}, "B is stopped after 2 of 9 steps."),
        ({"config": {"evaluation": {"naming": {"source": "y"}}}}, "Tasks that were not asked alike: naming."),
    ],
)
def test_what_cannot_be_compared_is_said(second: dict[str, Any], note: str, tmp_path: Path) -> None:
    alike = {"metrics": [measured(0.2)], "config": {"evaluation": {"naming": {"source": "x"}}}}
    notes = two(tmp_path, alike, {**alike, **second}).notes
    assert any(told.startswith(note) for told in notes)


def test_a_metric_that_one_run_lacks_stays_empty(tmp_path: Path) -> None:
    subset = {**measured(0.1), "subset": ["image", "audio"]}
    found = two(tmp_path, {"metrics": [measured(0.2), subset]}, {"metrics": [subset]})
    assert found.metrics["naming/R@1"][1] is None
    assert all(found.metrics["naming/R@1 [image + audio]"])


def test_one_run_seven_runs_and_the_same_twice_are_refused(tmp_path: Path) -> None:
    one = make(tmp_path / "run")
    with pytest.raises(runs.RunError, match="takes 2 to 6 runs, not 1; name two or more"):
        compare([one])
    with pytest.raises(runs.RunError, match="not 7; `mmfusion runs best METRIC` ranks any number"):
        compare([one] * 7)
    with pytest.raises(runs.RunError, match="is given twice"):
        compare([one, tmp_path / "." / "run"])
