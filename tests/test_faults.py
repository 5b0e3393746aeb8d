"""Wrong input over all verbs ends in one clear line and leaves nothing: the cases of experiments/first_hour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.first_hour import faults
from experiments.first_hour.faults import CASES, Case, World, interrupted_pack


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(case: Case, world: World) -> None:
    assert world.fault(case) is None


def test_what_is_left_in_the_working_folder_is_seen(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaves_runs(command: Sequence[str]) -> tuple[int, str]:
        Path("runs").mkdir()
        return 1, "no such option"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faults, "run_here", leaves_runs)
    assert world.fault(Case("a run is left", "train", "no such option")) == f"left {world.home / 'runs'}"
    (world.home / "runs").rmdir()


def test_a_pack_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    assert interrupted_pack(tmp_path) is None
