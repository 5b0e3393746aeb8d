"""Whole optimizer steps of batches from shards, in the two ways of reading: by number, and as a stream of tars."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch.utils.data
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from mmfusion.data.augment import Augment
from mmfusion.data.batching import Prepared
from mmfusion.data.cache import Cache
from mmfusion.data.decode import LIMITS, Limits, decode_sample
from mmfusion.data.format import sample_from_members
from mmfusion.data.order import Order, global_batch, permute, seed_of, stable_hash, stripe
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.select import Select
from mmfusion.data.series import array_of
from mmfusion.data.shards import ShardSet
from mmfusion.data.skips import Skips
from mmfusion.types import Batch, DataError, Sample, SkipSample

_SHUFFLE = 1000  # samples that the webdataset reader keeps to draw from
_PART_BYTES = 700  # what a part's fields take beside its data


@dataclasses.dataclass(frozen=True)
class Step:
    """This rank's share of one optimizer step: a batch for each accumulation; `masked` values of series were NaN."""

    batches: tuple[Batch, ...]
    masked: int


class Preparation:
    """A sample as read to a sample ready for a batch: one list of steps, each (Sample, seed) -> Sample, then patches.

    `cache_bytes` of what was decoded are kept for the next visit.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        select: Select | None,
        augment: Augment | None,
        *,
        limits: Limits = LIMITS,
        cache_bytes: int = 0,
    ) -> None:
        self.pipeline, self.limits = pipeline, limits
        self.cache = Cache(cache_bytes) if cache_bytes else None
        self.masked = 0
        steps: list[Callable[[Sample, int], Sample] | None] = [
            pipeline.readable,
            select,
            self.decode,
            self.count_masked,
            augment,
        ]
        self.steps = [step for step in steps if step is not None]

    def __call__(self, sample: Sample, seed: int, position: int) -> Prepared:
        """Raises SkipSample where the sample cannot be used."""
        for step in self.steps:
            sample = step(sample, seed)
        return self.pipeline.prepare(sample, seed, position)

    def decode(self, sample: Sample, seed: int) -> Sample:
        return decode_sample(sample, self.limits, self.cache)

    def count_masked(self, sample: Sample, seed: int) -> Sample:
        self.masked += sum(int(np.isnan(array_of(part)).sum()) for part in sample.of("sensor"))
        return sample

    def batch(self, drawn: Iterable[tuple[int, Callable[[], Sample]]], seed: int) -> Batch:
        """A batch of (position, how to read its sample); what cannot be used is counted and leaves it shorter."""
        prepared: list[Prepared] = []
        skipped = Counter[str]()
        for position, read in drawn:
            try:
                prepared.append(self(read(), seed_of(seed, position), position))
            except SkipSample as error:
                skipped[error.reason] += 1
        return self.pipeline.collate(prepared, skipped)

    def step(self, batches: Iterable[Batch]) -> Step:
        """Closes a step over its batches."""
        self.masked = 0
        made = tuple(batches)
        return Step(made, self.masked)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a global batch is dealt: `batch_size` samples a step over `world` ranks and `accumulate` batches each."""

    batch_size: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1


class IndexedSteps(torch.utils.data.Dataset[Step | DataError]):
    """Item k is step k: read by number in the global order, so that nothing depends on who asks, or when.

    With `cycle` only the first so many steps exist, met again and again, to see a model learn them by heart; with
    `visits` so many steps in a row meet the same samples. A DataError is the item, not raised, so that it leaves a
    worker as it is.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        prepare: Preparation,
        layout: Layout,
        seed: int,
        cycle: int | None = None,
        visits: int = 1,
    ) -> None:
        self.shards, self.order, self.prepare = shards, order, prepare
        self.layout, self.seed, self.cycle, self.visits = layout, seed, cycle, visits
        self._micro(global_batch(0, layout.batch_size), 0)  # a size that does not divide is refused now

    def _micro(self, positions: np.ndarray, micro: int) -> np.ndarray:
        return stripe(positions, self.layout.rank, self.layout.world, self.layout.accumulate, micro)

    def __getitem__(self, step: int) -> Step | DataError:
        number, visit = divmod(step, self.visits)
        positions = global_batch(number % self.cycle if self.cycle else number, self.layout.batch_size)
        stripes = (self._micro(positions, micro) for micro in range(self.layout.accumulate))
        batches = (self.prepare.batch(self._drawn(stripe), self.seed) for stripe in stripes)
        try:
            return self.prepare.step(dataclasses.replace(one, visit=(visit, self.visits)) for one in batches)
        except DataError as error:
            return error

    def _drawn(self, positions: np.ndarray) -> Iterator[tuple[int, Callable[[], Sample]]]:
        sources, indexes = self.order.at_many(positions)
        for position, source, index in zip(positions.tolist(), sources.tolist(), indexes.tolist(), strict=True):
            i = self.shards.locate(self.order.names[source], index)
            yield position, lambda i=i: self._read(i)

    def _read(self, i: int) -> Sample:
        cache = self.prepare.cache
        return self.shards.read(i) if cache is None else cache.get(i, lambda: self.shards.read(i), _sample_bytes)


def _sample_bytes(sample: Sample) -> int:
    return sum(_PART_BYTES + len(part.data if isinstance(part.data, bytes) else b"") for part in sample.parts)


class StreamedSteps(torch.utils.data.IterableDataset[Step | DataError]):
    """Steps from webdataset's own tar reader and shuffle buffer, with our decoders, from step `start` on.

    Ranks and workers deal the shards of an endless sequence, each pass in an order of its own. It goes on at the start
    of a shard: what was left of the shards that were open is not met in that pass. Sources are met as the shards come,
    and what a batch holds depends on the number of workers.
    """

    def __init__(self, shards: ShardSet, prepare: Preparation, layout: Layout, seed: int, start: int) -> None:
        self.shards, self.prepare, self.layout = shards, prepare, layout
        self.seed, self.start = seed, start
        self.size = len(stripe(global_batch(0, layout.batch_size), 0, layout.world, layout.accumulate, 0))

    def __iter__(self) -> Iterator[Step | DataError]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from self._steps(self.layout.rank * workers + worker, self.layout.world * workers, worker, workers)
        except DataError as error:
            yield error

    def _steps(self, stream: int, streams: int, worker: int, workers: int) -> Iterator[Step]:
        if streams > len(self.shards.shards):
            raise DataError(
                f"data.reader=webdataset: {len(self.shards.shards)} shards for {streams} ranks x workers; use fewer "
                "workers, more shards, or data.reader=indexed"
            )
        done = len(range(worker, self.start, workers))  # steps that this worker has built before
        drawn = self._samples(stream, streams, done * self.size * self.layout.accumulate)
        while True:
            yield self.prepare.step(
                self.prepare.batch(itertools.islice(drawn, self.size), self.seed) for _ in range(self.layout.accumulate)
            )

    def _samples(self, stream: int, streams: int, met: int) -> Iterator[tuple[int, Callable[[], Sample]]]:
        """(a number of its own for every visit, how to make the sample) from the first shard after `met` samples."""
        first = stream
        while met > 0:
            met -= len(self.shards.shards[self._shard_at(first)])
            first += streams
        turns = itertools.count(first, streams)
        for number, of_pass in itertools.groupby(turns, lambda turn: turn // len(self.shards.shards)):
            rng = random.Random(f"shuffle {self.seed} {number} {stream}")
            yield from shuffle(_SHUFFLE, initial=_SHUFFLE, rng=rng)(self._in_order(of_pass))

    def _in_order(self, turns: Iterable[int]) -> Iterator[tuple[int, Callable[[], Sample]]]:
        for turn in turns:
            path = self.shards.shards[self._shard_at(turn)].path
            for i, raw in enumerate(read_tar(str(path))):
                yield (turn << 32) + i, lambda raw=raw: sample_of(raw)

    def _shard_at(self, turn: int) -> int:
        """The shard that stands at `turn` in the endless sequence of passes."""
        number, place = divmod(turn, len(self.shards.shards))
        key = stable_hash("shards", self.seed, number)
        return int(permute(np.array([place]), len(self.shards.shards), key)[0])


def read_tar(path: str) -> Iterator[dict[str, bytes]]:
    """The raw samples of one tar as webdataset groups them, with its `__key__` and `__url__`."""
    with open(path, "rb") as file:  # opened here: an address never reaches webdataset's opener, which runs pipes
        yield from group_by_keys(tar_file_expander([{"url": path, "stream": file}]))


def sample_of(raw: dict[str, bytes]) -> Sample:
    """A raw webdataset sample as the indexed reader would give it. Raises SkipSample as `format` does."""
    members = {name: data for name, data in raw.items() if not name.startswith("__")}
    return sample_from_members(str(raw["__key__"]), members, str(raw["__url__"]))


class FixedBatches(Sequence[Batch]):
    """All samples of a split in order, `batch_size` a batch, the same each time they are asked for; made once.

    Ranks take whole batches in turn: what is compared within one does not depend on how many ranks there are. Where
    there are fewer batches than ranks, each takes them all, and the first counts their holes.
    """

    def __init__(self, shards: ShardSet, prepare: Preparation, layout: Layout, seed: int, skips: Skips) -> None:
        self.shards, self.prepare, self.seed = shards, prepare, seed
        self.size, self.skips = layout.batch_size, skips
        firsts = range(0, len(shards), self.size)
        shared = len(firsts) < layout.world
        self.firsts = firsts if shared else firsts[layout.rank :: layout.world]
        self.counts = not shared or layout.rank == 0
        self._made: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, number: int) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride]  (no slices)
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number not in self._made:
            first = self.firsts[number]
            numbers = range(first, min(first + self.size, len(self.shards)))
            drawn = [(i, lambda i=i: self.shards.read(i)) for i in numbers]
            self._made[number] = batch = self.prepare.batch(drawn, self.seed)
            if self.counts:
                self.skips.add(len(drawn), batch.skipped)
        return self._made[number]
