"""Holes: samples that cannot be used are counted by reason, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mmfusion.ranks import of_all
from mmfusion.types import DataError

_FEW = 16  # so many holes and nothing else stop a run of any length


class Skips:
    """Counts the samples asked for and the holes among them, and stops when holes become too many.

    `max_fraction` of the samples may be holes; it is looked at once `patience` samples were seen.
    """

    def __init__(self, max_fraction: float = 0.01, patience: int = 1000) -> None:
        self.max_fraction = max_fraction
        self.patience = patience
        self.seen = 0
        self.skipped = Counter[str]()

    def add(self, seen: int, skipped: Mapping[str, int]) -> None:
        """Counts a batch: `seen` samples were asked for, `skipped` of them are holes. Raises DataError at too many."""
        self.seen += seen
        self.skipped.update(skipped)
        holes = self.skipped.total()
        if holes == self.seen >= _FEW or (self.seen >= self.patience and holes > self.max_fraction * self.seen):
            raise self._too_many()

    def of_all(self) -> None:
        """Counts what all ranks have counted; all must call it."""
        everyone = of_all((self.seen, self.skipped))
        self.seen = sum(seen for seen, _ in everyone)
        self.skipped = sum((skipped for _, skipped in everyone), Counter[str]())

    def end(self) -> None:
        """Raises DataError if there was nothing but holes."""
        if self.seen and self.skipped.total() == self.seen:
            raise self._too_many()

    def _too_many(self) -> DataError:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in self.skipped.most_common())
        return DataError(
            f"{self.skipped.total()} of {self.seen} samples cannot be used ({reasons}); data.max_skipped_fraction is "
            f"{self.max_fraction}: mend the data or raise it"
        )
