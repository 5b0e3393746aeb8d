"""One trial: a run of `mmfusion train` for each repeat, one after another, each a process with a folder of its own.

    FOLDER/trials/003/seed-0/      a run folder as any other
    FOLDER/trials/003/seed-0.log   what that run printed, all its starts

A trial is looked at, never waited for, so that one thread leads any number of them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from mmfusion import runs
from mmfusion.config import near
from mmfusion.runs.history import Curves, logged
from mmfusion.runs.status import LIVE, read_status
from mmfusion.sweep.process import TRAIN, Child
from mmfusion.sweep.space import assigned
from mmfusion.sweep.study import Study, folder_of

STOPPED = (130, 143)


class Started(Protocol):
    """A run's process; `Child` is one."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def end(self) -> None: ...


class Start(Protocol):
    """Starts one: `Child` does."""

    def __call__(self, command: Sequence[str], *, log: Path, given: Mapping[str, str]) -> Started: ...


@dataclass(frozen=True)
class How:
    """What all trials of a sweep share.

    `seed` is that of the first repeat, `steps` are those of a run; `best`: a run keeps the weights of its lowest
    validation loss and not its last; `more` stands behind each command, such as `--config-dir`; `allow` behind
    `resume=` too.
    """

    folder: Path
    seed: int
    steps: int
    best: bool
    more: Sequence[str] = ()
    allow: Sequence[str] = ()
    start: Start = Child
    program: Sequence[str] = TRAIN


class Trial:
    """A trial under way. `look` again and again until it says that the trial is over."""

    def __init__(self, study: Study, trial: FrozenTrial, how: How, given: Mapping[str, str], slot: int = 0) -> None:
        self.number, self.slot = trial.number, slot
        self._study, self._trial, self._how, self._given = study, trial, how, given
        self._values: list[float] = list(trial.user_attrs.get("values", []))
        self._reported: dict[int, float] = dict(trial.intermediate_values)
        self._seen: dict[int, float] = {}
        self._process: Started | None = None
        self._pruned_at: int | None = None
        self._begin()

    @property
    def run(self) -> Path:
        """The run folder of the repeat that it is at."""
        return self.folder / f"seed-{self._seed}"

    @property
    def folder(self) -> Path:
        return folder_of(self._how.folder, self.number)

    @property
    def _seed(self) -> int:
        return self._how.seed + len(self._values)

    @property
    def _is_complete(self) -> bool:
        """Whether every repeat has its value; an earlier sweep may have been killed before it told so."""
        return len(self._values) >= self._study.sweep.repeats

    def _begin(self) -> None:
        """Start the repeat's run, go on with it, or find it done: whatever an earlier sweep has left."""
        self._process = None
        if self._is_complete or self._is_done() or self._is_live():
            return
        self._report(self._curves(over=False), sure=True)
        if self._pruned_at is not None:  # but not told yet
            return
        command = [*self._how.program, *self._how.more]
        if (self.run / "config.yaml").is_file() and runs.resume_points(self.run):
            command += [f"resume={self.run}", *self._how.allow]
        else:
            shutil.rmtree(self.run, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            values = self._study.values_of(self._trial)
            own = [assigned("seed", self._seed), assigned("paths.run", str(self.run))]
            command += [*self._study.sweep.arguments(values), *own]
        self._process = self._how.start(command, log=self._log, given=self._given)

    @property
    def _log(self) -> Path:
        return self.run.with_name(f"{self.run.name}.log")

    def _is_done(self) -> bool:
        return (self.run / "report.html").exists()

    def _is_live(self) -> bool:
        """Whether a process of an earlier sweep still works on it, or is still ending."""
        try:
            return self.run.exists() and read_status(self.run).state in LIVE
        except runs.RunError:
            return False

    def look(self) -> bool:
        """Report what was validated, end what is not worth going on; whether the trial is over, and told."""
        self._study.beat(self._trial)
        if self._is_complete:
            return self._over(TrialState.COMPLETE, "")
        if self._process is None and self._pruned_at is None and not self._is_done():
            if not self._is_live():
                self._begin()  # whoever worked on it has ended, before its end
            return False
        ended = self._process.poll() if self._process else 0
        curves = self._curves(over=ended is not None)
        self._report(curves, sure=ended is not None)
        if ended is None:
            return False
        if self._pruned_at is not None:
            return self._over(TrialState.PRUNED, f"pruned at step {self._pruned_at}")
        return self._failed(ended) if ended else self._repeated(curves)

    def stop(self) -> None:
        """End the run behind its step; the trial stays to be gone on with."""
        if self._process:
            self._process.stop()

    def wait(self) -> None:
        if self._process:
            self._process.end()

    def _curves(self, *, over: bool) -> Curves:
        try:
            return logged(self.run)
        except runs.RunError:  # half written
            if over:
                raise
            return {}

    def _report(self, curves: Curves, *, sure: bool) -> None:
        """In order, up to the first step at which the pruner ends it, so that it does not matter when we looked.

        A row may be half written: what is not `sure` is believed when it is found twice. At its last step a run has
        cost all that it can: it is pruned there only if other repeats would follow.
        """
        if self._values or self._pruned_at is not None:
            return
        for step, value in _of(curves, self._study.sweep.metric):
            if step in self._reported and step != max(self._reported):
                continue
            if not sure and self._seen.get(step) != value:
                self._seen[step] = value
                return
            self._reported[step] = value
            hopeless = self._study.report(self._trial, value, step)
            if hopeless and (step < self._how.steps or self._study.sweep.repeats > 1):
                self._pruned_at = step
                self.stop()
                return

    def _repeated(self, curves: Curves) -> bool:
        """The run is done: its value, then the next repeat, or the end of the trial."""
        sweep = self._study.sweep
        found = dict(_of(curves, sweep.metric))
        if not found:
            return self._over(TrialState.FAIL, _no_metric(sweep.metric, curves))
        losses = [(loss, step) for step, loss in _of(curves, "val/loss") if step in found]
        _, kept = min(losses) if self._how.best and losses else (None, max(found))
        value = found[kept]
        if not math.isfinite(value):
            return self._over(TrialState.FAIL, f"{sweep.metric} is {value}")
        self._values.append(value)
        self._study.note(self._trial, values=self._values)
        if not self._is_complete:
            self._begin()
            return False
        return self._over(TrialState.COMPLETE, "")

    def _failed(self, status: int) -> bool:
        if status in STOPPED:
            return self._over(TrialState.FAIL, "its run was stopped from outside")
        how = f"ended by signal {-status}" if status < 0 else f"status {status}"
        return self._over(TrialState.FAIL, self._said() or how)

    def _said(self) -> str:
        """What the run's last line says of its end, without the way on."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        last = next((line for line in reversed(lines) if line.startswith("mmfusion: ")), "")
        return last.removeprefix("mmfusion: ").partition("; go on with: ")[0]

    def _over(self, state: TrialState, message: str) -> bool:
        """Tell the study, then remove what is only for going on with the runs."""
        folders = [self.folder / f"seed-{self._how.seed + i}" for i in range(self._study.sweep.repeats)]
        facts = {"seconds": sum(map(_seconds, folders)), "message": message}
        self._study.note(self._trial, **facts)
        mean = sum(self._values) / len(self._values) if state == TrialState.COMPLETE else None
        self._study.tell(self._trial, state, mean)
        tidy(self._how.folder, self.number)
        return True


def tidy(folder: Path, number: int) -> None:
    """Remove the resume points of a trial that is over: most of what a run takes."""
    for points in folder_of(folder, number).glob("seed-*/resume"):
        shutil.rmtree(points, ignore_errors=True)


def _of(curves: Curves, metric: str) -> list[tuple[int, float]]:
    """The steps done and the value at each validation."""
    steps, values = curves.get(metric, ([], []))
    return [(int(step) + 1, value) for step, value in zip(steps, values, strict=True)]


def _no_metric(metric: str, curves: Curves) -> str:
    there = [name for name in curves if name.startswith("val/")]
    remedy = f"there are: {', '.join(there)}" if there else "nothing was validated"
    return f"metric: {metric} is not among what it logs{near(metric, there)}; {remedy}"


def _seconds(run: Path) -> float:
    try:
        return read_status(run).seconds
    except runs.RunError:
        return 0.0
