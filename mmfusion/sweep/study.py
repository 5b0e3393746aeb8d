"""What was tried, kept by Optuna in an SQLite file: asked for, told, and read again after any end.

Each suggestion is a function of the sweep's seed, the trial's number and what the trials before came to, so that a
sweep of one job that was killed goes on with the values that it would have had.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import shutil
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from mmfusion.errors import UserError
from mmfusion.sweep.space import Choice, Sweep

optuna.logging.set_verbosity(optuna.logging.ERROR)  # we say what there is to say

FILE = "study.sqlite"
LOCK = ".sweep.lock"
TRIALS = "trials"
NAME = "sweep"
BEAT_S = 10  # between heartbeats of a trial
SILENT_S = 60  # after which another machine's is taken for dead
WAIT_S = 5.0  # for a lock of the file
ATTEMPTS = 16  # to suggest what was not tried yet
MANY = 10_000  # combinations that are not gone through one by one
TABLES = ("studies", "study_directions", "study_user_attributes", "trials", "trial_params", "trial_values",
          "trial_intermediate_values", "trial_user_attributes", "trial_heartbeats")  # fmt: skip
IN_AN_ADDRESS = "?%{}"  # have a meaning in the address of a database
# What Optuna, or reading what it gives, raises of a file that was edited, or is of another of its versions.
EDITED = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


class SweepError(UserError):
    """A sweep that cannot begin or go on; the message says what to do."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else works on the sweep in the folder meanwhile, which is made if it is not there; a killed one holds
    nothing. What was made is removed if nothing was put into it. Raises SweepError.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise SweepError(f"{folder}: another process works on this sweep; wait for it, or stop it") from error
    except OSError as error:
        raise SweepError(f"{folder}: cannot write there ({error.strerror}); choose another: --folder FOLDER") from error
    try:
        yield
    finally:
        if {path.name for path in folder.iterdir()} <= {LOCK}:  # only who holds the lock may remove it
            (folder / LOCK).unlink(missing_ok=True)
            for path in made:
                with suppress(OSError):  # somebody put something into it
                    path.rmdir()
        lock.release()


def folder_of(folder: Path, number: int) -> Path:
    """Where the runs of a trial are."""
    return folder / TRIALS / f"{number:03}"


class Study:
    """The study in `folder`, made if it is not there: `ask`, report, `tell`.

    `configured` tells configurations apart, by part: a study goes on with its own alone (None: nothing will go on).
    One that was given up begins anew; `renewed` is how many trials it had. Raises SweepError for a file that is locked,
    damaged or of another sweep.
    """

    def __init__(self, folder: Path, sweep: Sweep, configured: Mapping[str, str] | None = None) -> None:
        self.folder, self.file = folder, folder / FILE
        self.sweep, self._configured = sweep, configured
        self.renewed = 0
        self._beats: dict[int, float] = {}
        with _told(self.file, *EDITED):
            self._open()
            if self._study.user_attrs.get("given_up"):
                self._renew()
            self._refuse_other()
            self._refuse_elsewhere()

    def _open(self) -> None:
        if self.file.exists():
            _refuse_unusable(self.file)
        else:
            self._make()
        self._storage = _storage(self.file)
        self._study = self._loaded()

    def _make(self) -> None:
        """Whole or not at all: a file that is killed while it is made is a draft."""
        if left := [path for path in self.folder.glob(f"{TRIALS}/*") if path.name.isdecimal()]:
            remedy = f"bring {FILE} back, or begin anew with --folder OTHER"
            raise SweepError(f"{left[0]}: is there, but {self.file} is not, which says what it is; {remedy}")
        draft = self.file.with_name(f".{self.file.name}.draft")
        draft.unlink(missing_ok=True)
        try:
            storage = _storage(draft)
            made = optuna.create_study(storage=storage, study_name=NAME, direction=self.sweep.direction)
            made.set_user_attr("sweep", _essence(self.sweep))
            made.set_user_attr("configured", dict(self._configured or {}))
            storage.remove_session()
            storage.engine.dispose()
            draft.replace(self.file)
        finally:
            draft.unlink(missing_ok=True)

    def _renew(self) -> None:
        """Begin anew, without the trials of which none came to anything."""
        numbers = [trial.number for trial in self.trials()]
        self.close()
        self.file.unlink()
        for number in numbers:
            shutil.rmtree(folder_of(self.folder, number), ignore_errors=True)
        with suppress(OSError):  # something else is in it
            (self.folder / TRIALS).rmdir()
        self.renewed = len(numbers)
        self._open()

    def give_up(self) -> None:
        """Every trial has failed: who opens the study next begins anew, with what was mended."""
        with _told(self.file):
            self._study.set_user_attr("given_up", True)

    def _loaded(self) -> optuna.Study:
        try:
            return optuna.load_study(
                study_name=NAME,
                storage=self._storage,
                sampler=optuna.samplers.RandomSampler(seed=0),  # unused: `suggested` asks
                pruner=_pruner(self.sweep),
            )
        except KeyError as error:
            remedy = "bring its copy back, or begin anew with --folder OTHER"
            raise SweepError(f"{self.file}: holds no sweep of ours; {remedy}") from error

    def _refuse_other(self) -> None:
        kept, remedy = self._study.user_attrs, "take another with --folder OTHER, or make them the same again"
        there, here = kept.get("sweep", {}), _essence(self.sweep)
        if differ := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
            told = "; ".join(f"{key}: {_brief(there.get(key))} there, {_brief(here.get(key))} now" for key in differ)
            raise SweepError(f"{self.file}: is of another space ({told}); {remedy}")
        there = kept.get("configured", {})
        here = there if self._configured is None else self._configured
        if differ := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
            told = f"its trials were not configured as they would be now: {', '.join(differ)}"
            raise SweepError(f"{self.file}: {told}; {remedy}")
        if self._study.direction.name.lower() != self.sweep.direction:
            raise ValueError("its direction is not that of the sweep")
        for number, trial in enumerate(self.trials()):
            if trial.number != number or trial.params.keys() != self.sweep.space.keys():
                raise ValueError(f"trial {number} is not as it was asked for")
            self.values_of(trial)

    def _refuse_elsewhere(self) -> None:
        """Another machine's lock is not seen on every file system; its heartbeats are."""
        place, host = self._study.user_attrs.get("host"), platform.node()
        with closing(sqlite3.connect(self.file, timeout=WAIT_S)) as base:
            beating = {id for (id,) in base.execute("SELECT trial_id FROM trial_heartbeats")}
        beating -= set(self._storage._get_stale_trial_ids(self._study._study_id))
        if place not in (None, host) and any(trial._trial_id in beating for trial in self.unfinished()):
            raise SweepError(f"{self.file}: {place} works on this sweep; wait for it, or stop it")
        self._study.set_user_attr("host", host)

    # -------------------------------------------------------------------------------------------------------- trials

    @property
    def optuna(self) -> optuna.Study:
        return self._study

    def trials(self) -> list[FrozenTrial]:
        """All of them, by number."""
        with _told(self.file):
            return self._study.get_trials(deepcopy=False)

    def unfinished(self) -> list[FrozenTrial]:
        """Those that a sweep which ended early has left."""
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def ask(self) -> FrozenTrial | None:
        """The next trial, begun and kept in one transaction; None where all that there is was tried.

        Raises SweepError where its folder is there: the file is older than the runs beside it.
        """
        before = self.trials()
        if (left := folder_of(self.folder, len(before))).exists():
            remedy = f"bring a newer copy of {FILE} back, or move the folder away"
            raise SweepError(f"{left}: is of a trial that {self.file} does not know; {remedy}")
        values = suggested(self.sweep, before)
        if values is None:
            return None
        made = optuna.create_trial(state=TrialState.RUNNING, params=values, distributions=distributions(self.sweep))
        with _told(self.file):
            self._study.add_trial(made)
        begun = self.trials()[-1]
        self.beat(begun)
        return begun

    def values_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """What the trial gives each key: choices as they are written in the space."""
        return given(self.sweep, trial.params)

    def report(self, trial: FrozenTrial, value: float, step: int) -> bool:
        """Keep what a trial was at after `step` steps; whether it is not worth going on."""
        with _told(self.file):
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(trial._trial_id)))

    def note(self, trial: FrozenTrial, **facts: Any) -> None:
        """Keep facts beside a trial that is not over."""
        with _told(self.file):
            for name, value in facts.items():
                self._storage.set_trial_user_attr(trial._trial_id, name, value)

    def tell(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        with _told(self.file):
            self._study.tell(trial.number, value, state=state)

    def beat(self, trial: FrozenTrial) -> None:
        """Say that the trial is under way, not too often."""
        if time.monotonic() - self._beats.get(trial.number, -BEAT_S) >= BEAT_S:
            self._beats[trial.number] = time.monotonic()
            with _told(self.file):
                self._storage.record_heartbeat(trial._trial_id)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """The space in Optuna's words."""
    found: dict[str, BaseDistribution] = {}
    for key, one in sweep.space.items():
        if isinstance(one, Choice):
            found[key] = CategoricalDistribution(one.labels)
        elif one.kind == "int":
            found[key] = IntDistribution(one.low, one.high, log=one.log, step=one.step or 1)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an end that is a last bit beyond the last step
                found[key] = FloatDistribution(one.low, one.high, log=one.log, step=one.step)
    return found


def given(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """Params of the study as values of the configuration."""
    return {
        key: json.loads(params[key]) if isinstance(one, Choice) else params[key] for key, one in sweep.space.items()
    }


def suggested(sweep: Sweep, before: list[FrozenTrial]) -> dict[str, Any] | None:
    """TPE's values (Bergstra et al. 2011) for the next trial, those of no trial before; None if there are no others.

    A pure function of the seed and the trials before: asked in memory, of a sampler of this one number.
    """
    tried = [trial.params for trial in before]
    found: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        digest = hashlib.sha256(f"{sweep.seed} {len(before)} {attempt}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental, as much of Optuna is
            sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"), constant_liar=True)
            study = optuna.create_study(direction=sweep.direction, sampler=sampler)
            study.add_trials(before)
            found = study.ask(distributions(sweep)).params
        if found not in tried:
            return found
    values = _all(sweep)
    return found if values is None else next((one for one in values if one not in tried), None)


def _all(sweep: Sweep) -> Iterator[dict[str, Any]] | None:
    """Every combination of values, one after another; None for a continuum, and for very many."""
    axes: list[Sequence[Any]] = []
    for one in distributions(sweep).values():
        if isinstance(one, CategoricalDistribution):
            axes.append(one.choices)
        elif isinstance(one, IntDistribution):
            axes.append(range(one.low, one.high + 1, one.step))
        elif isinstance(one, FloatDistribution) and one.step:
            count = round((one.high - one.low) / one.step) + 1
            axes.append(range(count) if count > MANY else [min(one.high, one.low + i * one.step) for i in range(count)])
        else:
            return None
    if math.prod(map(len, axes)) > MANY:
        return None
    return (dict(zip(sweep.space, values, strict=True)) for values in itertools.product(*axes))


def _pruner(sweep: Sweep) -> BasePruner:
    how = sweep.pruner
    if how.kind == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=how.after_trials, n_warmup_steps=how.after_steps)


def _essence(sweep: Sweep) -> dict[str, Any]:
    """What makes two sweeps one: all but how many trials are asked for."""
    tree = sweep.model_dump(mode="json", exclude={"trials", "space"})
    return tree | {f"space.{key}": one.model_dump(mode="json") for key, one in sweep.space.items()}


def _brief(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:80]


# ------------------------------------------------------------------------------------------------------------- the file


def _storage(file: Path) -> optuna.storages.RDBStorage:
    if found := [sign for sign in IN_AN_ADDRESS if sign in str(file.resolve())]:
        raise SweepError(f"{file.parent}: {found[0]} in a name bars it from the study; choose another: --folder FOLDER")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental
        return optuna.storages.RDBStorage(
            f"sqlite:///{file.resolve()}",
            engine_kwargs={"connect_args": {"timeout": WAIT_S}},
            heartbeat_interval=BEAT_S,
            grace_period=SILENT_S,
        )


def _refuse_unusable(file: Path) -> None:
    """Raises SweepError for a file that is locked, or no whole database, before Optuna changes it."""
    try:
        with closing(sqlite3.connect(file, timeout=WAIT_S, isolation_level=None)) as base:
            base.execute("BEGIN IMMEDIATE")
            (found,) = base.execute("PRAGMA quick_check(1)").fetchone()
            base.execute("ROLLBACK")
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            there = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if lacking := [name for name in TABLES if name not in there]:  # Optuna would make it, empty
                raise sqlite3.DatabaseError(f"no table {lacking[0]} is in it")
    except sqlite3.Error as error:
        raise SweepError(_why(file, error)) from error


@contextmanager
def _told(file: Path, *more: type[Exception]) -> Iterator[None]:
    """What SQLite raises through Optuna, and `more`, becomes one line."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, sqlite3.Error, *more) as error:
        raise SweepError(_why(file, error)) from error


def _why(file: Path, error: Exception) -> str:
    cause: BaseException = error
    while not isinstance(cause, sqlite3.Error) and (cause.__cause__ or getattr(cause, "orig", None)):
        cause = cause.__cause__ or getattr(cause, "orig")  # noqa: B009  (SQLAlchemy's)
    reason = " ".join(str(cause).split())[:160]
    if "locked" in reason or "busy" in reason:
        return f"{file}: is locked by another program ({reason}); close it, then give the same command again"
    if "readonly" in reason or "unable to open" in reason or "is full" in reason:
        return f"{file}: cannot be written ({reason}); mend that, or choose another with --folder FOLDER"
    return f"{file}: is damaged ({reason}); bring its copy back, or begin anew with --folder OTHER"
