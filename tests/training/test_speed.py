"""What the speed callback counts, and against which peak it holds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lightning.fabric.utilities.throughput import Throughput

from mmfusion.training.speed import Speed
from mmfusion.types import Batch

NOTHING: Any = None


def batch(*keys: str, **skipped: int) -> Batch:
    return Batch(streams={}, rows=NOTHING, keys=keys, concept=NOTHING, seeds=NOTHING, skipped=skipped)


def test_a_step_whose_only_sample_is_a_hole_is_counted_as_asked_for() -> None:
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1, global_step=1)
    module = SimpleNamespace(logs=lambda done: False)
    speed = Speed()
    speed.on_train_start(trainer, module)
    speed._throughput = Throughput(window_size=2)
    for number, met in enumerate([batch("a"), batch(corrupt=1), batch("b")]):
        speed.on_train_batch_end(trainer, module, None, met, number)
    assert speed._throughput.compute()["samples"] == 3
