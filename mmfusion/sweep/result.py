"""What a sweep came to: a row for each trial, which keys mattered, which trial is the best."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from mmfusion.sweep.space import Sweep
from mmfusion.sweep.study import Study, folder_of, given

State = Literal["done", "pruned", "failed", "unfinished"]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
ENOUGH = 4  # trials that are done before it is told which key mattered


@dataclass(frozen=True)
class Tried:
    """A trial: `value` is the mean over `n` repeats with the standard deviation `sd` between them (None for one).

    Of a pruned one it is the last that was reported, at `step`.
    """

    number: int
    state: State
    values: Mapping[str, Any]
    value: float | None
    sd: float | None
    n: int
    step: int | None
    seconds: float
    message: str
    folder: Path


@dataclass(frozen=True)
class Result:
    """All of a sweep, for the terminal and the page. `importance` sums to one; empty where too little is done."""

    name: str
    sweep: Sweep
    folder: Path
    tried: Sequence[Tried]
    importance: Mapping[str, float]

    @property
    def ranked(self) -> list[Tried]:
        """The best first: those done, then pruned ones by how far they came, then the rest."""
        sign = 1 if self.sweep.direction == "minimize" else -1
        order = ("done", "pruned", "unfinished", "failed")

        def key(one: Tried) -> tuple[float, ...]:
            far = -float(one.step or 0) if one.state == "pruned" else 0.0
            return order.index(one.state), far, sign * (one.value or 0.0), one.number

        return sorted(self.tried, key=key)

    @property
    def best(self) -> Tried | None:
        return next((one for one in self.ranked if one.state == "done"), None)


def result(study: Study, name: str, folder: Path) -> Result:
    return Result(name, study.sweep, folder, rows(study, folder), importance(study.optuna, list(study.sweep.space)))


def rows(study: Study, folder: Path) -> list[Tried]:
    """Every trial, by number."""
    return [_row(study.sweep, trial, folder) for trial in study.trials()]


def _row(sweep: Sweep, trial: FrozenTrial, folder: Path) -> Tried:
    repeats = trial.user_attrs.get("values", [])
    state = STATES.get(trial.state, "unfinished")
    return Tried(
        number=trial.number,
        state=state,
        values=given(sweep, trial.params),
        value=trial.value if state in ("done", "pruned") else None,
        sd=statistics.stdev(repeats) if state == "done" and len(repeats) > 1 else None,
        n=len(repeats) if state == "done" else 1 if state == "pruned" else 0,
        step=trial.last_step,
        seconds=trial.user_attrs.get("seconds", 0.0),
        message=trial.user_attrs.get("message", ""),
        folder=folder_of(folder, trial.number),
    )


def importance(study: optuna.Study, keys: Sequence[str]) -> dict[str, float]:
    """The share of each key in the variance of the value (fANOVA, Hutter et al. 2014), of trials that are done.

    Empty for fewer than ENOUGH trials, or where all came to the same.
    """
    done = study.get_trials(states=[TrialState.COMPLETE], deepcopy=False)
    if len(done) < ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    varied = [key for key in keys if len({trial.params[key] for trial in done}) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), params=varied
        )
    return {key: float(found.get(key, 0.0)) for key in sorted(keys, key=lambda key: -found.get(key, 0.0))}
