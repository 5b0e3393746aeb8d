"""`experiments/sweep/run.py` in a clone: real runs, killed, with two ranks, and the quickstart's sweep in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def rows(folder: Path, results: str, *options: str) -> dict[str, Any]:
    """What the experiment writes down, by id."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "experiments" / "sweep" / "results.json").unlink(missing_ok=True)
    command = [sys.executable, "experiments/sweep/run.py", "--keep", str(folder / "work"), *options]
    ended = subprocess.run(
        command, cwd=clone, env={**os.environ, "PYTHONPATH": str(clone)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((clone / "experiments" / "sweep" / results).read_text())["rows"]
    return {row["id"]: row for row in found}


@pytest.mark.slow  # sixty short runs, half of them of two processes: twenty minutes on two cores
@pytest.mark.timeout(3600)
def test_a_sweep_killed_twice_and_one_of_two_ranks(tmp_path: Path) -> None:
    found = rows(tmp_path, "results.json", "--only", "killed", "ranks")
    for id in ("Q8", "Q9"):
        assert found[id]["met"], found[id]
        assert found[id]["n"] == 12
        assert found[id]["beside"]["kills"] == 2
        assert found[id]["beside"]["runs gone on with"] >= 1
        assert found[id]["beside"]["failed"] == 1
        assert found[id]["beside"]["done"] >= 3


@pytest.mark.slow  # three minutes
@pytest.mark.timeout(900)
def test_all_of_it_in_small(tmp_path: Path) -> None:
    found = rows(tmp_path, "results.quick.json", "--quick")
    assert {"Q8", "Q9", "sweep.best", "sweep.optim.lr", "sweep.gain"} <= set(found)
    assert found["Q8"]["met"]
    assert found["Q9"]["met"]
