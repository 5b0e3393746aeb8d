"""The stream of batches for Lightning. It keeps no state: it starts at the trainer's global step.

shards -> order -> read -> [readable, select, decode, augment] -> patches, pieces, documents -> batches of a step
"""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.utils.data
from annotated_types import Ge, Gt, Le
from lightning.pytorch.utilities import rank_zero_warn

from mmfusion.data.augment import Augment
from mmfusion.data.decode import LIMITS, Limits
from mmfusion.data.order import Order
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.select import Select
from mmfusion.data.shards import MANIFEST, ShardSet, read_manifest, verify
from mmfusion.data.skips import Skips
from mmfusion.data.stream import FixedBatches, IndexedSteps, Layout, Preparation, Step, StreamedSteps
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.ranks import of_all
from mmfusion.types import Batch, DataError

_GRACE_S = 600  # that a worker lives on after SIGTERM: more than any step and its validation take


class DataModule(pl.LightningDataModule):
    """Training and validation batches from the shards under `root`.

    What changes results: `batch_size` is the number of samples of one optimizer step, over all ranks and accumulated
    batches. `pipeline` is called with the tokenizer. `select` and `augment` are for training; validation takes English
    texts and changes nothing. `weights` are the shares of the sources (without them each has its share of the samples).
    `reader=webdataset` reads tars as a stream: for what cannot be indexed, resuming by shard only. `cycle_steps` trains
    on the first so many steps over and over; `visits` is how many steps in a row meet the same samples, so that answers
    that an objective draws to them serve for several updates.

    What does not: `workers` (processes that build whole steps), `cache_mb` (of decoded parts, in each of them).

    `prepare` makes the shards below `root` where they are not there, or not made from what lies here now.

    The run stops when more than `max_skipped_fraction` of the samples cannot be used. `skips` says why they could not
    in training, `validation_skips` in validation, `masked` how many values of series were not measured in training,
    `waited_s` how long it has waited for steps.
    """

    def __init__(
        self,
        *,
        root: str,
        tokenizer: str,
        pipeline: Callable[..., Pipeline],
        batch_size: Annotated[int, Gt(0)],
        seed: Annotated[int, Ge(0)],
        select: Select | None = None,
        augment: Augment | None = None,
        weights: Mapping[str, Annotated[float, Ge(0)]] | None = None,
        reader: Literal["indexed", "webdataset"] = "indexed",
        workers: Annotated[int, Ge(0)] = 0,
        cache_mb: Annotated[int, Ge(0)] = 256,
        max_skipped_fraction: Annotated[float, Ge(0), Le(1)] = 0.01,
        cycle_steps: Annotated[int, Gt(0)] | None = None,
        visits: Annotated[int, Gt(0)] = 1,
        limits: Limits = LIMITS,
        prepare: Callable[[Path], None] | None = None,
    ) -> None:
        super().__init__()
        if reader == "webdataset" and (weights is not None or cycle_steps is not None or visits > 1):
            named = "data.weights, data.cycle_steps and data.visits"
            raise ValueError(f"{named} need data.reader=indexed: a stream comes as it comes")
        self.root, self.tokenizer = Path(root), Path(tokenizer)
        self.batch_size, self.seed, self.weights, self.cycle_steps = batch_size, seed, weights, cycle_steps
        self.visits = visits
        self.select, self.augment = select or Select(), augment
        self.reader, self.workers, self.limits = reader, workers, limits
        self.cache_bytes = cache_mb << 20
        self.skips = Skips(max_skipped_fraction)
        self.validation_skips = Skips(max_skipped_fraction)
        self.masked = 0
        self.waited_s = 0.0
        self._begun, self._before = -1, self._counted()
        self._make_pipeline, self._make_shards = pipeline, prepare

    def prepare_data(self) -> None:
        if self._make_shards is not None:
            self._make_shards(self.root)

    def setup(self, stage: str) -> None:
        """Opens the data. Raises DataError if anything about tokenizer, manifest or shards is not as it should be."""
        listed = read_manifest(self.root)  # first: a vocabulary may lie beside it
        self.pipeline = self._make_pipeline(tokenizer=SentencePieceTokenizer(self.tokenizer))
        indexes = verify(self.root)
        self.train = ShardSet(self.root, "train", listed, indexes)
        self.order = Order(self.train.sources, self.weights, self.seed)
        has_validation = any(entry.split == "validation" for entry in listed)
        self.validation = ShardSet(self.root, "validation", listed, indexes) if has_validation else None

    def train_dataloader(self) -> Iterable[Batch]:
        return StepLoader(self)

    def val_dataloader(self) -> Iterable[Batch]:
        if self.validation is None:
            return []
        prepare = Preparation(self.pipeline, Select(english=1.0), None, limits=self.limits)
        layout = self._layout()
        return FixedBatches(self.validation, prepare, layout, self.seed, self.validation_skips)

    def state_dict(self) -> dict[str, Any]:
        """What was counted in the steps that are done, and of which data; where a run stands is the global step.

        A step that has begun is met again when the run goes on.
        """
        begun = self.trainer is not None and self.trainer.global_step == self._begun
        return {"data": self.fingerprints(), **(self._before if begun else self._counted())}

    def _counted(self) -> dict[str, Any]:
        return {"seen": self.skips.seen, "skipped": dict(self.skips.skipped), "masked": self.masked}

    def begin(self, number: int, shares: Iterable[Share]) -> None:
        """Counts what a step asked for and lacks, of all ranks. Raises DataError at too many holes."""
        self._begun, self._before = number, self._counted()
        for share in shares:
            self.skips.add(share.seen, share.skipped)
            self.masked += share.masked

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises DataError where the run began with other shards or another tokenizer."""
        for name, digest in self.fingerprints().items():
            if state_dict["data"][name] != digest:
                where = f"data.{name}: {getattr(self, name)}"
                raise DataError(f"{where} is not what this run began with; put it back, or start a new run")
        self.skips.seen, self.masked = state_dict["seen"], state_dict["masked"]
        self.skips.skipped = Counter(state_dict["skipped"])

    def fingerprints(self) -> dict[str, str]:
        """What decides which samples a run meets, and how texts are cut: sha256 by key."""
        files = {"root": self.root / MANIFEST, "tokenizer": self.tokenizer}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}

    def _layout(self) -> Layout:
        if self.trainer is None:
            return Layout(self.batch_size)
        accumulate = self.trainer.accumulate_grad_batches
        return Layout(self.batch_size, self.trainer.global_rank, self.trainer.world_size, accumulate)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """This rank's steps `start` to `stop` in order, built by the workers. Raises DataError."""
        layout = self._layout()
        prepare = Preparation(
            self.pipeline, self.select, self.augment, limits=self.limits, cache_bytes=self.cache_bytes
        )
        common: dict[str, Any] = {
            "batch_size": None,
            "num_workers": self.workers,
            "collate_fn": _as_it_is,
            "worker_init_fn": _outlive_a_signal,
            "generator": torch.Generator().manual_seed(0),  # else opening a loader would move the model's randomness
        }
        if self.reader == "indexed":
            built = IndexedSteps(self.train, self.order, prepare, layout, self.seed, self.cycle_steps, self.visits)
            loader = torch.utils.data.DataLoader(built, sampler=range(start, stop), **common)
        else:
            if start:
                rank_zero_warn(
                    "data.reader=webdataset goes on at the next shard: the rest of the open ones is left out"
                )
            loader = torch.utils.data.DataLoader(StreamedSteps(self.train, prepare, layout, self.seed, start), **common)
        built = iter(loader)
        try:
            for _ in range(start, stop):
                began = time.perf_counter()
                item = next(built)
                self.waited_s += time.perf_counter() - began
                if isinstance(item, DataError):
                    raise item
                yield cast("Step", item)
        finally:
            del built  # ends the workers: an error's traceback would keep them, and they outlive the end of the process


def datamodule_of(trainer: pl.Trainer) -> DataModule:
    """The data that a trainer was given; Lightning's stub of Trainer leaves the attribute out."""
    return cast("Any", trainer).datamodule


@dataclass
class Share:
    """What one rank has to say of its share of a step: samples asked for, holes among them, values not measured, or
    why the run cannot go on."""

    seen: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    masked: int = 0
    error: str | None = None


class StepLoader:
    """The micro-batches of all steps from the trainer's global step on, each with its step's `counts` on all ranks.

    Its length is that of the whole run, as Lightning counts it, wherever it starts. What is wrong with one rank's data
    ends all ranks in the same words.
    """

    def __init__(self, data: DataModule) -> None:
        if data.trainer is None or data.trainer.max_steps < 1:
            raise DataError("training is measured in steps: give the trainer max_steps")
        self.data, self.trainer = data, data.trainer

    def __len__(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Batch]:
        module = cast("Any", self.trainer.lightning_module)
        first, last = self.trainer.global_step, self.trainer.max_steps
        steps = self.data.steps(first, last)
        for number in range(first, last):
            share, batches = _next(steps)
            shares = of_all(share)
            for one in shares:
                if one.error is not None:
                    raise DataError(one.error)
            self.data.begin(number, shares)
            counts = Counter[str]()
            for counted in of_all([module.count(batch) for batch in batches]):
                for of_batch in counted:
                    counts.update(of_batch)
            for batch in batches:
                yield dataclasses.replace(batch, counts=dict(counts))


def _next(steps: Iterator[Step]) -> tuple[Share, Sequence[Batch]]:
    """This rank's share of the next step and its batches; of one that cannot be had, what is wrong."""
    try:
        step = next(steps)
    except DataError as error:
        return Share(error=str(error)), ()
    share = Share(masked=step.masked)
    for batch in step.batches:
        share.seen += len(batch.keys) + sum(batch.skipped.values())
        share.skipped.update(batch.skipped)
    return share, step.batches


def _as_it_is(item: Step | DataError) -> Step | DataError:
    return item


def _outlive_a_signal(worker: int) -> None:
    """A signal to the whole group stops the training process after its step, for which the workers are needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE_S))
