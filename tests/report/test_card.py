"""The model card says what the model is, what it learnt from under which licence, and how sure its numbers are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mmfusion.api import Model
from mmfusion.data.shards import ShardEntry
from mmfusion.evaluation.bench import Outcome
from mmfusion.evaluation.measure import row
from mmfusion.report import card


def entry(split: str, source: str, licence: str) -> ShardEntry:
    return ShardEntry(
        file=f"{source}-{split}.tar",
        split=split,
        samples=1200,
        bytes=1,
        sha256="0",
        languages={"fr": 1, "en": 2},
        sources={source: 1200},
        licences={licence: 1200},
    )


def stub(**changed: Any) -> Model:
    lineage = {"step": 600, "commit": "abc", "data": {"fingerprint": "f00"}}
    made = {
        "modalities": ("image", "text"),
        "parameter_counts": {"image": 1_500_000, "text": 10_000},
        "lineage": lineage,
    }
    return cast("Model", SimpleNamespace(**{**made, **changed}))


def test_it_names_data_licences_and_size() -> None:
    made = card("quickstart", [entry("train", "stamps", "GPL-2.0"), entry("test", "birds", "CC0-1.0")], (), stub())
    assert "1.51 million parameters (image 1.50 M, text 0.01 M), trained for 600 steps" in made
    assert "| stamps | 1,200 | GPL-2.0 |" in made
    assert "birds" not in made  # it was not trained on
    assert "2 languages: en, fr" in made
    assert "`abc`" in made
    assert "Not evaluated yet." in made
    assert "only text ties them" not in made
    assert "only text ties them" in card("x", [], (), stub(modalities=("image", "sensor")))


def test_results_come_with_interval_chance_and_baseline() -> None:
    hits = np.array([1.0, 0.0] * 50)
    metrics = [row("picture_to_name", Outcome("R@1", hits, [str(i) for i in range(100)], 0.01, {"pixel": hits * 0}))]
    made = card("x", [], metrics, stub())
    (line,) = [line for line in made.splitlines() if line.startswith("| Picture to name")]
    cells = [cell.strip().replace("\u202f", " ") for cell in line.strip("|").split("|")]
    low, high = (float(cell.removesuffix(" %")) for cell in cells[3].split(" to "))
    assert (low, high) == pytest.approx((40, 60), abs=2)
    assert cells[:3] == ["Picture to name", "R@1", "50.0 %"]
    assert cells[4:] == ["100 (100)", "1.0 %", "pixel 0 %"]
