"""The study's file, and what is suggested."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from mmfusion.sweep import study as module
from mmfusion.sweep.result import importance, result
from mmfusion.sweep.space import Sweep
from mmfusion.sweep.study import FILE, Study, SweepError, distributions, suggested
from tests.sweep.small import SPACE, space


def finished(sweep: Sweep, losses: list[float]) -> list[optuna.trial.FrozenTrial]:
    """Trials in turn, each with the values that were suggested and a loss."""
    found: list[optuna.trial.FrozenTrial] = []
    for loss in losses:
        values = suggested(sweep, found)
        assert values is not None
        made = optuna.create_trial(params=values, distributions=distributions(sweep), value=loss)
        made.number = len(found)
        found.append(made)
    return found


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 5), st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_what_is_suggested_is_a_function_of_seed_and_trials(seed: int, losses: list[float]) -> None:
    sweep = space(seed=seed)
    first, second = finished(sweep, losses), finished(sweep, losses)
    assert [one.params for one in first] == [one.params for one in second]
    for one in first:
        assert 0.01 <= one.params["a"] <= 1.0
        assert one.params["b"] in ("1", "true", '"text"', "[0.9, 0.98]")


def test_other_seeds_suggest_other_values() -> None:
    assert suggested(space(seed=0), []) != suggested(space(seed=1), [])


def test_after_the_first_ten_it_goes_where_it_was_good() -> None:
    """TPE: of a loss that is a itself, on a log scale, later suggestions are smaller than the first were."""
    sweep, found = space(space={"a": SPACE["a"]}), []
    for _ in range(30):
        values = suggested(sweep, found)
        assert values is not None
        found.append(optuna.create_trial(params=values, distributions=distributions(sweep), value=values["a"]))
    values = [trial.params["a"] for trial in found]
    assert sorted(values[20:])[5] < sorted(values[:10])[5] / 2


def test_nothing_is_suggested_twice_and_in_the_end_nothing() -> None:
    sweep = space(space={"b": SPACE["b"], "n": {"kind": "int", "low": 2, "high": 6, "step": 2}})
    found = finished(sweep, [1.0] * 12)
    assert len({(one.params["b"], one.params["n"]) for one in found}) == 12
    assert suggested(sweep, found) is None


@pytest.mark.parametrize(("low", "high", "step"), [(0.1, 0.7, 0.1), (0.001, 0.009, 0.001), (0.0, 1.0, 1 / 3)])
def test_a_grid_of_steps_is_tried_to_its_end(low: float, high: float, step: float) -> None:
    """Also where its last step is, in floating point, a little beyond it."""
    sweep = space(space={"a": {"kind": "float", "low": low, "high": high, "step": step}})
    count = round((high - low) / step) + 1
    found = finished(sweep, [1.0] * count)
    assert len({one.params["a"] for one in found}) == count
    assert max(one.params["a"] for one in found) <= high
    assert suggested(sweep, found) is None


def test_very_many_whole_numbers_are_not_gone_through() -> None:
    sweep = space(
        space={"a": {"kind": "int", "low": 1, "high": 10**12}, "b": {"kind": "int", "low": 1, "high": 10**12}}
    )
    assert module._all(sweep) is None


@pytest.mark.parametrize(
    ("after_trials", "after_steps", "ended"), [(0, 0, True), (3, 0, False), (0, 3, False), (2, 2, True)]
)
def test_a_pruner_waits_for_so_many_trials_and_steps(
    after_trials: int, after_steps: int, ended: bool, tmp_path: Path
) -> None:
    """Of two trials at 1 and 2 the third, at 9 in step 2, is worse than their median."""
    sweep = space(pruner={"kind": "median", "after_trials": after_trials, "after_steps": after_steps})
    study = Study(tmp_path, sweep)
    for value in (1.0, 2.0):
        trial = study.ask()
        assert trial is not None
        study.report(trial, value, 2)
        study.tell(trial, TrialState.COMPLETE, value)
    trial = study.ask()
    assert trial is not None
    assert study.report(trial, 9.0, 2) is ended
    study.close()


def damaged(file: Path) -> None:
    file.write_bytes(b"not a database at all" * 100)


def cut(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as base:
        base.execute("CREATE TABLE mine (x)")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (damaged, "is damaged (file is not a database)"),
        (cut, "is damaged ("),
        (empty, "is damaged (no table studies is in it)"),
        (foreign, "is damaged (no table studies is in it)"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_left_as_it_is(
    spoil: Callable[[Path], None], expected: str, tmp_path: Path
) -> None:
    Study(tmp_path, space()).close()
    spoil(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(SweepError) as raised:
        Study(tmp_path, space())
    assert str(raised.value).startswith(f"{tmp_path / FILE}: {expected}")
    assert "bring its copy back, or begin anew with --folder OTHER" in str(raised.value)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_that_another_program_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Study(tmp_path, space()).close()
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SweepError, match=r"study.sqlite: is locked by another program .*; close it, then give"):
            Study(tmp_path, space())
        other.execute("ROLLBACK")
    Study(tmp_path, space()).close()


def test_a_file_that_is_locked_in_mid_course_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    study = Study(tmp_path, space())
    trial = study.ask()
    assert trial is not None
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SweepError, match="is locked by another program"):
            study.report(trial, 1.0, 2)
        other.execute("ROLLBACK")
    study.close()


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE study_user_attributes SET value_json = '[1]' WHERE key = 'sweep'",
        "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'sweep'",
        "UPDATE alembic_version SET version_num = 'v99'",
        "DELETE FROM trial_params WHERE param_name = 'a'",
        "UPDATE trial_params SET param_value = 99",
        "UPDATE trials SET number = 7",
        "DELETE FROM study_directions",
        "DROP TABLE trials",
        "DROP TABLE trial_heartbeats",
    ],
)
def test_a_study_that_was_edited_is_one_line(edit: str, tmp_path: Path) -> None:
    study = Study(tmp_path, space())
    study.ask()
    study.close()
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute(edit)
    with pytest.raises(SweepError) as raised:
        Study(tmp_path, space())
    assert str(raised.value).startswith(f"{tmp_path}/{FILE}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a?b", "p%20b", "{SCHEMA}", "i${oc.env:HOME}"])
def test_a_name_that_is_more_than_a_name_in_an_address_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SweepError, match="bars it from the study; choose another"):
        Study(tmp_path / name, space())
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_a_study_goes_on_with_its_own_configuration_alone(tmp_path: Path) -> None:
    Study(tmp_path, space(), {"model": "a1", "optim": "b2"}).close()
    with pytest.raises(SweepError, match="its trials were not configured as they would be now: model; "):
        Study(tmp_path, space(), {"model": "a2", "optim": "b2"})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"space": {**SPACE, "a": {"kind": "float", "low": 0.01, "high": 2.0}}}, "space.a: "),
        ({"space": {"a": SPACE["a"]}}, "space.b: "),
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"direction": "maximize"}, 'direction: "minimize" there, "maximize" now'),
        ({"overrides": ["x=1"]}, 'overrides: [] there, ["x=1"] now'),
    ],
)
def test_a_study_of_another_space_is_refused(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    Study(tmp_path, space()).close()
    with pytest.raises(SweepError, match="is of another space") as raised:
        Study(tmp_path, space(**changed))
    assert told in str(raised.value)


def test_more_trials_are_no_other_space(tmp_path: Path) -> None:
    Study(tmp_path, space(trials=3)).close()
    Study(tmp_path, space(trials=30)).close()


def test_one_that_another_machine_works_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its heartbeats say; where they are old it is dead."""
    monkeypatch.setattr(module.platform, "node", lambda: "elsewhere")
    study = Study(tmp_path, space())
    assert study.ask() is not None
    study.close()
    monkeypatch.setattr(module.platform, "node", lambda: "here")
    with pytest.raises(SweepError, match="elsewhere works on this sweep"):
        Study(tmp_path, space())
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    Study(tmp_path, space()).close()
    with sqlite3.connect(tmp_path / FILE) as base:  # killed before its first
        base.execute("DELETE FROM trial_heartbeats")
        base.execute("UPDATE study_user_attributes SET value_json = '\"elsewhere\"' WHERE key = 'host'")
    Study(tmp_path, space()).close()


def test_a_study_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.optuna, "create_study", killed)
    with pytest.raises(KeyboardInterrupt):
        Study(tmp_path, space())
    assert not (tmp_path / FILE).exists()
    monkeypatch.undo()
    Study(tmp_path, space()).close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_one_key_that_decides_all_has_all_the_importance() -> None:
    sweep = space()
    study = optuna.create_study()
    for one in finished(sweep, [0.0] * 14):
        values = dict(one.params)
        study.add_trial(optuna.create_trial(params=values, distributions=distributions(sweep), value=values["a"]))
    found = importance(study, ["b", "a"])
    assert list(found) == ["a", "b"]
    assert found["a"] > 0.9
    assert sum(found.values()) == pytest.approx(1)
    assert importance(optuna.create_study(), ["a"]) == {}


def test_the_best_is_of_those_that_are_done(tmp_path: Path) -> None:
    """0 is done at 3, 1 pruned at 1 in mid-course, 2 failed, 3 done at 2: the best is 3, then 0, 1, 2."""
    for direction, best in (("minimize", 3), ("maximize", 0)):
        sweep = space(direction=direction)
        folder = tmp_path / direction
        folder.mkdir()
        study = Study(folder, sweep)
        for state, value in ((TrialState.COMPLETE, 3.0), (TrialState.PRUNED, None), (TrialState.FAIL, None),
                             (TrialState.COMPLETE, 2.0)):  # fmt: skip
            trial = study.ask()
            assert trial is not None
            study.report(trial, 1.0, 2)
            study.tell(trial, state, value)
        found = result(study, "x", folder)
        study.close()
        assert found.best is not None
        assert found.best.number == best
        assert [one.number for one in found.ranked] == [best, 3 - best, 1, 2]
