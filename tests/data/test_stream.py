"""The stream: whole steps that depend on (seed, step) alone, and two readers that agree."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny_media import (
    list_shard,
    npy,
    picture_sample,
    png,
    small_patchify,
    small_pipeline,
    spoken_sample,
    tar,
    watch_sample,
    wrist,
    write_set,
)
from torch import Tensor

from mmfusion.data.augment import Augment, AugmentAudio, AugmentImage, AugmentSensor
from mmfusion.data.datamodule import DataModule
from mmfusion.data.decode import decode_sample
from mmfusion.data.index import ShardIndex
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.select import Select
from mmfusion.data.shards import ShardSet
from mmfusion.data.skips import Skips
from mmfusion.data.stream import FixedBatches, Layout, Preparation, Step, read_tar, sample_of
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.data.writer import describe_shard, write_manifest
from mmfusion.types import Batch, DataError, Sample
from tests.forked import Forked

AUGMENT = Augment(image=AugmentImage(), audio=AugmentAudio(crop_s=0.2), sensor=AugmentSensor(window_s=2.0))


def module(root: Path, tokenizer_path: Path, **how: Any) -> DataModule:
    fields: dict[str, Any] = {"batch_size": 12, "seed": 3, "augment": AUGMENT, **how}
    pipeline = partial(Pipeline, patchify=small_patchify(), row_length=64, text_pieces=16)
    made = DataModule(root=str(root), tokenizer=str(tokenizer_path), pipeline=pipeline, **fields)
    made.setup("fit")
    return made


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def same(first: Batch, second: Batch) -> bool:
    a, b = list(tensors(first)), list(tensors(second))
    equal = (
        first.keys == second.keys and first.skipped == second.skipped and list(first.streams) == list(second.streams)
    )
    return (
        equal and len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))
    )


def assert_same(first: list[Step], second: list[Step]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.masked == b.masked
        assert len(a.batches) == len(b.batches)
        assert all(same(x, y) for x, y in zip(a.batches, b.batches, strict=True))


# ------------------------------------------------------------------------------------------------------ the two readers


def test_both_readers_give_the_same_samples(tmp_path: Path) -> None:
    samples = [picture_sample(0), spoken_sample(1), watch_sample(2), spoken_sample(3)]
    write_set(tmp_path, {"a.tar": ("train", samples)})
    plain = tar(tmp_path / "plain.tar", [("x/0.JPG", png(form="JPEG")), ("x/LICENSE", b"-"), ("x/0.txt", b"goose")])
    for path in (tmp_path / "a.tar", plain):
        index = ShardIndex(path)
        indexed = [index.read(i) for i in range(len(index))]
        streamed = [sample_of(raw) for raw in read_tar(str(path))]
        assert streamed == indexed
        for a, b in zip(indexed, streamed, strict=True):
            assert [(p.data, p.times_s) for p in a.parts] == [(p.data, p.times_s) for p in b.parts]


def test_the_webdataset_reader_meets_every_sample_once_a_pass(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path, reader="webdataset", batch_size=17)
    keys = [key for step in data.steps(0, 4) for batch in step.batches for key in batch.keys]
    assert sorted(keys) == sorted([s.key for s in ShardSet(mixed, "train")] * 2)
    again = [key for step in data.steps(0, 4) for batch in step.batches for key in batch.keys]
    assert again == keys


def test_the_webdataset_reader_goes_on_at_a_shard_and_says_so(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path, reader="webdataset", batch_size=10)
    with pytest.warns(UserWarning, match="next shard"):
        later = [key for step in data.steps(1, 5) for key in step.batches[0].keys]
    assert len(later) == 40
    shards = [{index.read(i).key for i in range(len(index))} for index in ShardSet(mixed, "train").shards]
    left = [
        some for n in (1, 2) for some in itertools.combinations(shards, n) if set(later[: _size(some)]) == _all(some)
    ]
    assert len(left) == 1  # the rest of the pass is whole shards, and what was met before is in the others
    assert 10 <= _size(shards) - _size(left[0]) < 10 + max(map(len, shards))


def _all(shards: Iterable[set[str]]) -> set[str]:
    return set().union(*shards)


def _size(shards: Iterable[set[str]]) -> int:
    return len(_all(shards))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_more_workers_than_shards_is_an_error_without_a_hang(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path, reader="webdataset", workers=4)
    with pytest.raises(DataError, match="3 shards for 4 ranks x workers"):
        list(data.steps(0, 2))


def test_a_stream_cannot_be_mixed(mixed: Path, tokenizer_path: Path) -> None:
    for how in ({"weights": {"pictures": 1.0}}, {"cycle_steps": 2}, {"visits": 2}):
        with pytest.raises(ValueError, match=r"need data\.reader=indexed"):
            module(mixed, tokenizer_path, reader="webdataset", **how)


# ------------------------------------------------------------------------------------------------------- indexed steps


def test_steps_are_the_same_for_any_workers_cache_and_start(mixed: Path, tokenizer_path: Path) -> None:
    whole = list(module(mixed, tokenizer_path).steps(0, 6))
    assert_same(list(module(mixed, tokenizer_path, workers=2).steps(0, 6)), whole)
    assert_same(list(module(mixed, tokenizer_path, cache_mb=0).steps(0, 6)), whole)
    assert_same(list(module(mixed, tokenizer_path, workers=1).steps(4, 6)), whole[4:])
    other = list(module(mixed, tokenizer_path, seed=4).steps(0, 1))
    assert not same(other[0].batches[0], whole[0].batches[0])


def test_every_sample_is_met_once_a_pass(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path, batch_size=17)
    keys = [key for step in data.steps(0, 2) for key in step.batches[0].keys]
    assert sorted(keys) == sorted(s.key for s in ShardSet(mixed, "train"))


def test_weights_share_the_batch(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path, weights={"pictures": 1.0, "spoken": 1.0, "watch": 2.0})
    for step in data.steps(0, 3):
        assert sorted(key[0] for key in step.batches[0].keys) == ["p"] * 3 + ["s"] * 3 + ["w"] * 6
    with pytest.raises(DataError, match=r"data\.weights names pictures; the sources are pictures, spoken, watch"):
        module(mixed, tokenizer_path, weights={"pictures": 1.0})


def test_cycle_steps_repeats_the_first(mixed: Path, tokenizer_path: Path) -> None:
    steps = list(module(mixed, tokenizer_path, cycle_steps=2).steps(0, 5))
    assert_same(steps[:2], list(module(mixed, tokenizer_path).steps(0, 2)))
    assert_same(steps[2:4], steps[:2])
    assert_same(steps[4:], steps[:1])


def test_visits_meet_the_same_samples_so_many_steps_in_a_row(mixed: Path, tokenizer_path: Path) -> None:
    steps = list(module(mixed, tokenizer_path, visits=2).steps(0, 4))
    assert [step.batches[0].visit for step in steps] == [(0, 2), (1, 2)] * 2
    plain = list(module(mixed, tokenizer_path).steps(0, 2))
    assert [step.batches[0].keys for step in steps] == [plain[i].batches[0].keys for i in (0, 0, 1, 1)]
    assert torch.equal(steps[0].batches[0].seeds, steps[1].batches[0].seeds)


def test_seeds_concepts_and_keys_belong_together(mixed: Path, tokenizer_path: Path) -> None:
    data = module(mixed, tokenizer_path)
    batches = [step.batches[0] for step in data.steps(0, 6)]
    assert len({int(s) for b in batches for s in b.seeds}) == 72
    concepts: dict[str, set[int]] = {}
    for batch in batches:
        for key, concept in zip(batch.keys, batch.concept.tolist(), strict=True):
            concepts.setdefault(key, set()).add(concept)
    assert all(len(found) == 1 for found in concepts.values())
    assert concepts["p0003"] == concepts["s0003"] != concepts["p0004"]


def damaged(root: Path) -> Path:
    """Ten samples, of which two cannot be used, and a series with a hole in it."""
    members: list[tuple[str, bytes]] = []
    for i in range(10):
        members += [(f"{i}.png", b"junk" if i == 3 else png()), (f"{i}.txt", b"caf\xe9" if i == 7 else b"goose")]
    return list_shard(tar(root / "a.tar", members))


def test_holes_make_a_batch_shorter_and_are_counted(tmp_path: Path, tokenizer_path: Path) -> None:
    data = module(damaged(tmp_path), tokenizer_path, batch_size=5, max_skipped_fraction=0.5)
    batches = [step.batches[0] for step in data.steps(0, 2)]
    assert sum(len(b.keys) for b in batches) == 8
    assert [len(b.keys) + sum(b.skipped.values()) for b in batches] == [5, 5]
    assert sorted(reason for b in batches for reason in b.skipped) == ["corrupt picture", "text not utf-8"]


def test_values_that_were_not_measured_are_counted(tmp_path: Path, tokenizer_path: Path) -> None:
    values = np.ones((50, 3))
    values[:7, 1] = np.nan
    write_set(tmp_path, {"a.tar": ("train", [dataclasses.replace(watch_sample(0), parts=(wrist(data=npy(values)),))])})
    (step,) = module(tmp_path, tokenizer_path, batch_size=2).steps(0, 1)
    assert step.masked == 14


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_set_stops_the_run_from_a_worker_too(tmp_path: Path, tokenizer_path: Path, workers: int) -> None:
    write_set(tmp_path, {"a.tar": ("train", [picture_sample(i) for i in range(6)])})
    data = module(tmp_path, tokenizer_path, workers=workers)
    path = tmp_path / "a.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match=r"^[^\n]*a.tar: key 'p000\d': the shard has shrunk[^\n]*$"):
        list(data.steps(0, 1))


# ----------------------------------------------------------------------------------------------------- under Lightning


class Reader(pl.LightningModule):
    """Trains one weight and writes down what it is given."""

    def __init__(self, log: Path | None = None, kill_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.met: list[tuple[int, Batch]] = []
        self.log_path, self.kill_at = log, kill_at

    def count(self, batch: Batch) -> dict[str, int]:
        return {"samples": len(batch.keys)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.met.append((self.global_step, batch))
        if self.log_path is not None:
            with self.log_path.open("a") as file:
                file.write(json.dumps([self.global_step, *batch.keys, batch.counts["samples"]]) + "\n")
        if self.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.weight * batch.streams["image"].values.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.met.append((-1, batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    data: DataModule, reader: Reader, steps: int, ckpt: Path | None = None, folder: Path | None = None, **how: Any
) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints: list[Callback] = [ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)] if folder else []
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        enable_checkpointing=bool(checkpoints),
        callbacks=checkpoints,
        **{"val_check_interval": 1000, **quiet, **how},
    )
    trainer.fit(reader, datamodule=data, ckpt_path=ckpt)


def train(reader: Reader) -> list[tuple[int, Batch]]:
    return [(step, batch) for step, batch in reader.met if step >= 0]


@pytest.mark.filterwarnings("ignore")
def test_resumed_at_a_step_it_gives_the_same_batches(mixed: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    straight, first, second = Reader(), Reader(), Reader()
    accumulate: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    fit(module(mixed, tokenizer_path), straight, 7, **accumulate)
    fit(module(mixed, tokenizer_path), first, 7, folder=tmp_path, limit_train_batches=1000, **accumulate)
    point = next(p for p in tmp_path.glob("*.ckpt") if "step=3" in p.name)
    fit(module(mixed, tokenizer_path, workers=1), second, 7, ckpt=point, **accumulate)
    whole, rest = train(straight), train(second)
    assert [step for step, _ in whole] == [s for s in range(7) for _ in range(2)]
    assert [step for step, _ in rest] == [s for s in range(3, 7) for _ in range(2)]
    assert all(same(a, b) for (_, a), (_, b) in zip(whole[6:], rest, strict=True))
    assert all(batch.counts == {"samples": 12} and len(batch.keys) == 6 for _, batch in whole + rest)
    assert torch.equal(straight.weight, second.weight)


@pytest.mark.filterwarnings("ignore")
def test_validation_is_the_same_every_time(mixed: Path, tokenizer_path: Path) -> None:
    reader = Reader()
    fit(module(mixed, tokenizer_path, batch_size=4), reader, 4, val_check_interval=2)
    validated = [batch for step, batch in reader.met if step == -1]
    assert [batch.keys for batch in validated] == [("p1000", "p1001", "p1002", "p1003"), ("p1004",)] * 2
    assert same(validated[0], validated[2])
    tokenizer = SentencePieceTokenizer(tokenizer_path)
    texts = validated[0].streams["text"]
    assert {
        tokenizer.decode(ids[valid].tolist())[:5] for ids, valid in zip(texts.values, texts.valid, strict=True)
    } == {"goose"}


@pytest.mark.filterwarnings("ignore")
def test_too_many_holes_stop_the_training(tmp_path: Path, tokenizer_path: Path) -> None:
    root = list_shard(tar(tmp_path / "a.tar", [(f"{i}.png", b"junk") for i in range(40)]))
    with pytest.raises(DataError, match=r"20 of 20 samples cannot be used \(corrupt picture \(20\)\)"):
        fit(module(root, tokenizer_path, batch_size=20), Reader(), 50)


@pytest.mark.filterwarnings("ignore")
def test_holes_of_validation_are_counted_apart(tmp_path: Path, tokenizer_path: Path) -> None:
    entries = write_set(tmp_path, {"a.tar": ("train", [picture_sample(i) for i in range(4)])})
    held_out = tar(tmp_path / "b.tar", [("0.png", b"junk"), ("1.png", png()), ("1.txt", b"goose")])
    write_manifest(tmp_path, [*entries, describe_shard(held_out, split="validation")])
    data = module(tmp_path, tokenizer_path, batch_size=4)
    fit(data, Reader(), 2, val_check_interval=1)
    assert (data.skips.seen, data.skips.skipped) == (8, {})
    assert (data.validation_skips.seen, data.validation_skips.skipped) == (2, {"corrupt picture": 1})


def test_holes_that_every_rank_meets_are_counted_once(tmp_path: Path, tokenizer_path: Path) -> None:
    entries = write_set(tmp_path, {"a.tar": ("train", [picture_sample(0)])})
    held_out = tar(tmp_path / "b.tar", [("0.png", b"junk"), ("1.png", png()), ("1.txt", b"goose")])
    write_manifest(tmp_path, [*entries, describe_shard(held_out, split="validation")])
    seen = []
    for batch_size in (2, 1):  # one batch for two ranks, and one for each
        for rank in (0, 1):
            skips = Skips(max_fraction=1.0)
            shards = ShardSet(tmp_path, "validation")
            prepare = Preparation(small_pipeline(SentencePieceTokenizer(tokenizer_path)), Select(english=1.0), None)
            batches = FixedBatches(shards, prepare, Layout(batch_size, rank, 2), 0, skips)
            seen.append((sum(len(batch.keys) for batch in batches), skips.seen, skips.skipped.total()))
    assert seen == [(1, 2, 1), (1, 0, 0), (0, 1, 1), (1, 1, 0)]


def test_a_run_is_measured_in_steps_and_batches_must_divide(mixed: Path, tokenizer_path: Path) -> None:
    with pytest.raises(DataError, match="max_steps"):
        fit(module(mixed, tokenizer_path), Reader(), -1)
    with pytest.raises(DataError, match="batch_size=12 does not divide by 1 ranks x 5"):
        fit(module(mixed, tokenizer_path), Reader(), 2, accumulate_grad_batches=5)


def read_and_die(root: Path, tokenizer: Path, log: Path, folder: Path) -> None:
    fit(module(root, tokenizer, workers=1), Reader(log, kill_at=3), 6, folder=folder)


@pytest.mark.filterwarnings("ignore")
def test_killed_and_resumed_it_meets_every_step_once(mixed: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of step 3, then on from the last checkpoint: the same keys as without it."""
    log, folder = tmp_path / "log", tmp_path / "points"
    status, _, error = Forked(read_and_die, mixed, tokenizer_path, log, folder, folder=tmp_path).ended()
    assert status == -signal.SIGKILL, error
    point = max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert "step=3" in point.name
    fit(module(mixed, tokenizer_path), Reader(log), 6, ckpt=point)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line[0] for line in lines] == [0, 1, 2, 3, 3, 4, 5]
    straight = [batch.keys for step in module(mixed, tokenizer_path).steps(0, 6) for batch in step.batches]
    assert [tuple(line[1:-1]) for line in lines] == [*straight[:4], *straight[3:]]


def test_the_embedded_sample_can_be_streamed(tokenizer: SentencePieceTokenizer) -> None:
    root = Path(__file__).parents[2] / "data_prep" / "sample"
    shards = ShardSet(root, "validation")
    pipeline = small_pipeline(tokenizer, row_length=512)
    one_of_each: dict[str, Sample] = {}
    for i in range(len(shards)):
        if shards.source_of(i) not in one_of_each:
            one_of_each[shards.source_of(i)] = decode_sample(pipeline.readable(shards.read(i)))
    batch = pipeline.batch(list(one_of_each.values()))
    assert len(batch.keys) == len(one_of_each) >= 4
    assert all((stream.owner >= 0).all() for stream in batch.streams.values())
