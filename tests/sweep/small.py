"""A small space, and sweeps over it whose runs are the stub's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfusion.sweep import process, search, trial
from mmfusion.sweep.result import Tried, rows
from mmfusion.sweep.space import Sweep
from mmfusion.sweep.study import Study, alone

STUB = Path(__file__).with_name("stub.py")
SPACE: dict[str, Any] = {
    "a": {"kind": "float", "low": 0.01, "high": 1.0, "log": True},
    "b": {"kind": "choice", "values": [1, True, "text", [0.9, 0.98]]},
}


def space(**changed: Any) -> Sweep:
    """Minimize `val/loss` over a and b."""
    told = {"metric": "val/loss", "trials": 6, "only_in_trials": ["steps=6"], "space": SPACE}
    return Sweep.model_validate({**told, **changed})


def swept(
    folder: Path,
    sweep: Sweep,
    *,
    jobs: int = 1,
    poll_s: float = 0.01,
    steps: int = 6,
    best: bool = False,
    told: list[Tried] | None = None,
) -> None:
    """Search as the command does, with the stub for `mmfusion train`."""
    search.POLL_S = poll_s
    heard = told if told is not None else []

    def share(slot: int) -> Mapping[str, str]:
        return process.shared(4, jobs, 1, slot)

    how = trial.How(folder=folder, seed=0, steps=steps, best=best, program=[sys.executable, "-S", str(STUB)])
    with alone(folder):
        study = Study(folder, sweep)
        try:
            search.search(study, how, trials=sweep.trials, jobs=jobs, share=share, told=heard.append)
        finally:
            study.close()


def found(folder: Path, sweep: Sweep) -> list[Tried]:
    """What a sweep's folder holds."""
    study = Study(folder, sweep)
    try:
        return rows(study, folder)
    finally:
        study.close()


def told(found: list[Tried]) -> list[tuple[Any, ...]]:
    """What two sweeps of the same space and seed must have in common."""
    return [(one.number, one.state, dict(one.values), one.value, one.sd, one.n, one.step) for one in found]
