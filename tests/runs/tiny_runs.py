"""Run folders written by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmfusion.runs import Status


def measured(value: float, ci95: tuple[float, float] | None = None, metric: str = "R@1", n: int = 40) -> dict[str, Any]:
    return {"task": "naming", "metric": metric, "value": value, "n": n, "ci95": ci95, "chance": 0.1}


def make(
    folder: Path,
    *,
    losses: Sequence[float] = (3.0, 2.0),
    metrics: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    began: str = "2026-11-20T10:00:00+0000",
    **status: Any,
) -> Path:
    """A finished run of as many steps as there are losses, unless `status` says other."""
    folder.mkdir(parents=True)
    tree = {"name": "tiny", "steps": len(losses), "paths": {"run": str(folder)}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    there = {"command": "mmfusion train", "started": began, "commit": "c" * 40, "processor": "abacus", "cores": 2}
    (folder / "environment.json").write_text(json.dumps(there))
    (folder / "metrics.json").write_text(json.dumps(list(metrics)))
    rows = [f"{step},{loss}" for step, loss in enumerate(losses)]
    (folder / "metrics.csv").write_text("\n".join(["step,val/loss", *rows, ""]))
    facts = {"state": "finished", "step": len(losses), "data": "f" * 64, "time": time.time(), **status}
    (folder / "status.json").write_text(Status(**facts).model_dump_json())
    return folder
