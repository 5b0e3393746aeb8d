"""Holes: samples that cannot be used are counted by reason, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mmfusion.data.decode import LIMITS, Limits, decode_sample
from mmfusion.data.shards import ShardSet
from mmfusion.types import DataError, Sample, SkipSample


class Skips:
    """Counts holes and oddities by reason, and stops when holes become too many.

    `max_fraction` of the samples seen may be holes; it is looked at once `patience` samples were seen.
    """

    def __init__(self, max_fraction: float = 0.01, patience: int = 1000) -> None:
        self.max_fraction = max_fraction
        self.patience = patience
        self.seen = 0
        self.skipped = Counter[str]()
        self.examples: dict[str, str] = {}

    def add(self, seen: int, skipped: Mapping[str, int]) -> None:
        """Counts a batch: `seen` samples were asked for, `skipped` of them are holes. Raises DataError at too many."""
        self.seen += seen
        self.skipped.update(skipped)
        holes = self.skipped.total()
        if holes and (holes == self.seen or (self.seen >= self.patience and holes > self.max_fraction * self.seen)):
            reasons = ", ".join(f"{reason} ({n})" for reason, n in self.skipped.most_common())
            raise DataError(
                f"{holes} of {self.seen} samples cannot be used, more than data.max_skipped_fraction="
                f"{self.max_fraction}: {reasons}; mend the data or raise the fraction"
            )


def usable(shards: ShardSet, skips: Skips, limits: Limits = LIMITS) -> Iterator[Sample]:
    """The decoded samples of a split in order; what cannot be used is counted in `skips` and passed over."""
    for i in range(len(shards)):
        try:
            sample = decode_sample(shards.read(i), limits)
        except SkipSample as error:
            skips.add(1, {error.reason: 1})
            continue
        skips.add(1, {})
        yield sample
