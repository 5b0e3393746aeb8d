"""The scripts of `experiments/` in a clone: they end in their rows, and in the small form within minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def rows(clone: Path, script: str, results: str, *options: str | Path) -> dict[str, dict[str, Any]]:
    """What a script of an experiment writes down, by id."""
    made = (clone / "experiments" / script).parent / results
    made.unlink(missing_ok=True)
    command = [sys.executable, f"experiments/{script}", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(clone)}
    ended = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return {row["id"]: row for row in json.loads(made.read_text())["rows"]}


@pytest.mark.slow  # a pretraining and two stages of few steps, then their evaluation: three minutes
@pytest.mark.timeout(1200)
def test_the_chain_in_small(clone: Path, tmp_path: Path) -> None:
    kept = ("--quick", "--keep", tmp_path / "work")
    told = {"L1", "L2.image", "L2.sensor", "L3.worst", "L3.mean", "L3.answers", "L4.all", "L9.bytes", "L9.memory"}
    assert told <= rows(clone, "chain/run.py", "results.quick.json", *kept).keys()
    begin = ("--from", tmp_path / "work" / "pretrained", "--seeds", "0")
    told = {"L5.known.0", "L5.other-vendor.0", "L5.seconds"}
    assert told <= rows(clone, "chain/policy.py", "results.policy.quick.json", *kept, *begin).keys()


@pytest.mark.slow  # six minutes
@pytest.mark.timeout(1800)
def test_integers_in_small(clone: Path) -> None:
    found = rows(clone, "quantization/run.py", "results.quick.json", "--quick")
    assert {"Q1.watch_exercise.accuracy", "Q2.cost", "Q2.trained", "Q2.distilled"} <= found.keys()
    exact = [row for id, row in found.items() if id.startswith(("Q3.", "Q4."))]
    assert len(exact) == 15  # three schemes, with adapters and without, before and behind the disk; and their sizes
    assert all(row["met"] for row in exact)
    assert "Q5.tiny.embedding" in rows(clone, "quantization/speed.py", "results.speed.quick.json", "--quick")
    found = rows(clone, "quantization/optimizers.py", "results.optimizers.quick.json", "--quick")
    assert found["Q7.bytes.adamw_8bit"]["met"]


@pytest.mark.slow  # sixty short runs, half of them of two processes: twenty minutes on two cores
@pytest.mark.timeout(3600)
def test_a_sweep_killed_twice_and_one_of_two_ranks(clone: Path, tmp_path: Path) -> None:
    found = rows(clone, "sweep/run.py", "results.json", "--keep", tmp_path / "work", "--only", "killed", "ranks")
    for id in ("Q8", "Q9"):
        assert found[id]["met"], found[id]
        assert found[id]["n"] == 12
        assert found[id]["beside"]["kills"] == 2
        assert found[id]["beside"]["runs gone on with"] >= 1
        assert found[id]["beside"]["failed"] == 1
        assert found[id]["beside"]["done"] >= 3


@pytest.mark.slow  # three minutes
@pytest.mark.timeout(900)
def test_a_sweep_in_small(clone: Path, tmp_path: Path) -> None:
    found = rows(clone, "sweep/run.py", "results.quick.json", "--keep", tmp_path / "work", "--quick")
    assert {"Q8", "Q9", "sweep.best", "sweep.optim.lr", "sweep.gain"} <= found.keys()
    assert found["Q8"]["met"]
    assert found["Q9"]["met"]
