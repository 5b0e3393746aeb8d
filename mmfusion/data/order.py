"""The order in which samples are met, as a pure function of (seed, position): nothing to store, nothing to replay.

Position p of the endless order belongs to optimizer step p // batch_size. A fixed cycle of slots shares positions
between sources as evenly as their weights allow; the n-th pick of a source is its sample number n % length of pass
n // length, through a permutation keyed by (seed, source, pass). The permutation is a Feistel network walked until it
falls inside the length (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), so that billions of
samples cost no memory.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping

import numpy as np

from mmfusion.types import DataError

_CYCLE = 1 << 16  # slots of the mixing cycle: shares hold to one part in 65,536
_TABLE = 1 << 16  # sources up to this size are permuted once a pass, not once a pick
_ROUNDS = 6
_MASK63 = (1 << 63) - 1


def stable_hash(*parts: str | int) -> int:
    """63 bits that are the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") & _MASK63


def seed_of(seed: int, position: int) -> int:
    """63 bits of randomness that belong to one position: the seed of all that is drawn there."""
    return stable_hash("position", seed, position)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), on uint64, wrapping."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, length: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(length) sends each of `index` (int64, any shape); one to one for every key."""
    half = max(1, math.ceil(math.log2(max(length, 2)) / 2))
    low = np.uint64((1 << half) - 1)
    round_keys = _mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    x = index.astype(np.uint64)
    outside = np.ones(x.shape, dtype=bool)
    while outside.any():
        left, right = x[outside] >> np.uint64(half), x[outside] & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        x[outside] = left << np.uint64(half) | right
        outside = x >= np.uint64(length)
    return x.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _table(length: int, key: int) -> np.ndarray:
    return permute(np.arange(length), length, key)


def _permuted(index: np.ndarray, length: int, key: int) -> np.ndarray:
    """`permute`, from a table where one is small."""
    return _table(length, key)[index] if length <= _TABLE else permute(index, length, key)


def _slots_of(lengths: Mapping[str, int], weights: Mapping[str, float]) -> list[int]:
    """How many of the cycle's slots each source has: largest remainders, at least one slot for a positive weight."""
    total = sum(weights.values())
    exact = [weights[name] / total * _CYCLE for name in lengths]
    slots = [max(1, math.floor(share)) if share > 0 else 0 for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: slots[i] - exact[i])
    spare = _CYCLE - sum(slots)
    for i in by_remainder[: max(spare, 0)]:
        slots[i] += 1
    if spare < 0:
        slots[slots.index(max(slots))] += spare
    return slots


class Order:
    """The endless order over sources of `lengths` samples each.

    `weights` are the sources' shares of the positions, in any scale; without them each has its share of the samples.
    Within a source every sample comes once a pass, in an order of its own for each pass.
    """

    def __init__(self, lengths: Mapping[str, int], weights: Mapping[str, float] | None, seed: int) -> None:
        if not lengths or min(lengths.values()) < 1:
            raise DataError(f"every source needs a sample: {dict(lengths)}")
        shares = dict(weights) if weights is not None else {name: float(n) for name, n in lengths.items()}
        if set(shares) != set(lengths):
            raise DataError(
                f"data.weights names {', '.join(sorted(shares))}; the sources are {', '.join(sorted(lengths))}"
            )
        if not all(math.isfinite(w) and w >= 0 for w in shares.values()) or sum(shares.values()) <= 0:
            raise DataError(f"data.weights must be >= 0 and not all 0: {shares}")
        self.names = tuple(lengths)
        self.seed = seed
        self._lengths = np.array([lengths[name] for name in self.names], dtype=np.int64)
        self._slots = np.array(_slots_of(lengths, shares), dtype=np.int64)
        # Slot k of n of a source wants to stand at (k + 1/2) / n of the cycle: sort all by that.
        due = np.concatenate([(np.arange(n) + 0.5) / n for n in self._slots if n] or [np.zeros(0)])
        owner = np.repeat(np.arange(len(self._slots)), self._slots)
        rank = np.concatenate([np.arange(n) for n in self._slots])
        by_due = np.argsort(due, kind="stable")
        self._owner, self._rank = owner[by_due].astype(np.int32), rank[by_due].astype(np.int32)

    def at_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, sample number within the source) of each position, int64 like `positions`."""
        cycle, slot = np.divmod(np.asarray(positions, dtype=np.int64), _CYCLE)
        source = self._owner[slot].astype(np.int64)
        pick = cycle * self._slots[source] + self._rank[slot]
        turn, index = np.divmod(pick, self._lengths[source])
        for number, this_turn in {(int(s), int(t)) for s, t in zip(source, turn, strict=True)}:
            of_turn = (source == number) & (turn == this_turn)
            key = stable_hash("pass", self.seed, self.names[number], this_turn)
            index[of_turn] = _permuted(index[of_turn], int(self._lengths[number]), key)
        return source, index

    def at(self, position: int) -> tuple[str, int]:
        """(source, sample number within it) of one position."""
        source, index = self.at_many(np.array([position]))
        return self.names[int(source[0])], int(index[0])


def global_batch(step: int, batch_size: int) -> np.ndarray:
    """The positions that optimizer step `step` sees, int64 [batch_size], on every rank and layout the same."""
    return np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)


def stripe(positions: np.ndarray, rank: int, world: int, accumulate: int, micro: int) -> np.ndarray:
    """The run of positions of a global batch that is micro-batch `micro` of `accumulate` on `rank` of `world`.

    Raises DataError if the batch does not divide: unequal stripes would weigh samples unequally.
    """
    length, rest = divmod(len(positions), world * accumulate)
    if rest or not length:
        raise DataError(
            f"data.batch_size={len(positions)} does not divide by {world} ranks x {accumulate} accumulated batches"
        )
    first = (micro * world + rank) * length
    return positions[first : first + length]
