"""Shared by all tests: one run of one step through everything, made once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_step_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `mmfusion train debug=one_step` leaves it, evaluated and reported."""
    from mmfusion.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "one_step"
    assert main(["train", "debug=one_step", "data.workers=0", f"paths.run={run}"]) == 0
    return run
