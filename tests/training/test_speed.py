"""What the speed callback counts, and against which peak it holds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.throughput import Throughput

from mmfusion.training import speed
from mmfusion.types import Batch

NOTHING: Any = None


def batch(*keys: str, **skipped: int) -> Batch:
    return Batch(streams={}, rows=NOTHING, keys=keys, concept=NOTHING, seeds=NOTHING, skipped=skipped)


def test_a_step_whose_only_sample_is_a_hole_is_counted_as_asked_for() -> None:
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=1)
    module = SimpleNamespace(logs=lambda done: False)
    callback = speed.Speed()
    callback.on_train_start(trainer, module)
    callback._throughput = Throughput(window_size=2)
    for number, met in enumerate([batch("a"), batch(corrupt=1), batch("b")]):
        callback.on_train_batch_end(trainer, module, None, met, number)
    assert callback._throughput.compute()["samples"] == 3


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("64-true", torch.float64),
    ],
)
def test_a_run_is_held_against_the_peak_of_its_own_precision(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "matrix_flops", lambda device, asked: 1.0 if asked is dtype else 2.0)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(strategy=strategy, precision=precision, world_size=1)
    assert speed._throughput(trainer, window=2).available_flops == 1.0


def test_the_peak_is_that_of_the_threads_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    speed._measured.cache_clear()
    for threads in (1, 1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        speed.matrix_flops(torch.device("cpu"), torch.float32)
    assert speed._measured.cache_info().misses == 2
