"""A sweep under way: as many trials at once as there are jobs, each given its share of the cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from optuna.trial import TrialState

from mmfusion.sweep.result import Tried, rows
from mmfusion.sweep.study import Study, SweepError
from mmfusion.sweep.trial import How, Trial, tidy

POLL_S = 0.2
HOPELESS = 3  # trials that fail, and none does not: then it is no matter of their values


def search(
    study: Study,
    how: How,
    *,
    trials: int,
    jobs: int,
    share: Callable[[int], Mapping[str, str]],
    told: Callable[[Tried], None],
) -> None:
    """Go on with what was begun, then begin trials until there are `trials`; `told` hears of each that is over.

    `share` gives the environment of the run in one of `jobs` places. Whatever ends this ends the runs too, each behind
    the step it is in, to be gone on with. Raises SweepError where trials come to nothing.
    """
    waiting = iter(_to_do(study, trials))
    going: list[Trial] = []
    try:
        while True:
            while len(going) < jobs and (number := next(waiting, None)) is not None:
                slot = min(set(range(jobs)) - {trial.slot for trial in going})
                going.append(Trial(study, study.trials()[number], how, share(slot), slot))
            if not going:
                return
            for trial in [trial for trial in going if trial.look()]:
                going.remove(trial)
                tried = rows(study, how.folder)[trial.number]
                told(tried)
                if tried.state == "failed":
                    _refuse_hopeless(study, how.folder, min(HOPELESS, trials))
            time.sleep(POLL_S if going else 0)
    finally:
        for trial in going:
            trial.stop()
        for trial in going:
            trial.wait()


def _to_do(study: Study, trials: int) -> Iterator[int]:
    """The numbers of the trials to work on: those left unfinished, then new ones, each asked for in its turn."""
    for trial in study.trials():
        if trial.state == TrialState.RUNNING:
            yield trial.number
    while len(study.trials()) < trials:
        asked = study.ask()
        if asked is None:
            return
        yield asked.number


def _refuse_hopeless(study: Study, folder: Path, enough: int) -> None:
    """Raises SweepError where so many trials have failed and none has come to anything, not even to one validation."""
    found = rows(study, folder)
    failed = [one for one in found if one.state == "failed"]
    if len(failed) < enough or any(one.state in ("done", "pruned") or one.step for one in found):
        return
    study.give_up()
    remedy = "mend that, then give the same command: it begins anew"
    raise SweepError(f"{failed[-1].folder}: all trials fail, this one with: {failed[-1].message}; {remedy}")


def tidy_all(study: Study, folder: Path) -> None:
    """What a sweep that was killed behind a trial's end has not removed."""
    for trial in study.trials():
        if trial.state.is_finished():
            tidy(folder, trial.number)
