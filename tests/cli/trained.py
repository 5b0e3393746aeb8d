"""What the tests of `mmfusion train` share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmfusion.cli.main import main

SMALL = ["data.batch_size=8", "data.workers=0", "evaluation=none", "callbacks.resume.every_n_train_steps=2",
         "trainer.log_every_n_steps=1", "~callbacks.speed"]  # fmt: skip
SAMPLE = Path("data_prep/sample")


def as_typed(arguments: list[str]) -> int:
    """`mmfusion …` as the program of a process of its own."""
    sys.argv = ["mmfusion", *arguments]
    return main()


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["train", *arguments])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    return status, error
