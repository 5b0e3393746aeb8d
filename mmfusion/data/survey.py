"""Samples of a set chosen to be looked at: by a hash, not by how they come out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, zip_longest

from mmfusion.data.order import stable_hash
from mmfusion.data.shards import ShardSet
from mmfusion.types import DataError, SkipSample


def choose(shards: ShardSet, *, n: int, seed: int, source: str | None = None) -> list[int]:
    """The numbers of at most `n` samples by a hash of seed and key, in turn from each source.

    A source is what mixing knows (`ShardEntry.source`). `source` takes the samples of one, which in a shard of several
    are found by reading. Raises DataError if there is none of that name.
    """
    groups: dict[str, list[int]] = {}
    for i in range(len(shards)):
        groups.setdefault(shards.source_of(i), []).append(i)
    if source is not None and source in groups:
        groups = {source: groups[source]}
    in_turn = [
        sorted(groups[name], key=lambda i: stable_hash("show", seed, shards.key_of(i)))
        for name in sorted(groups, key=lambda name: stable_hash("show source", seed, name))
    ]
    found = (i for turn in zip_longest(*in_turn) for i in turn if i is not None)
    if source is not None and source not in groups:
        names = sorted(set(groups).union(*(entry.sources for entry in shards.entries)))
        if source not in names:
            raise DataError(f"no source {source!r} in split {shards.split!r}; it has {', '.join(names)}")
        found = (i for i in found if source in shards.entry_of(i).sources and _source(shards, i) == source)
    return list(islice(found, n))


def _source(shards: ShardSet, i: int) -> str | None:
    try:
        return shards.read(i).source
    except SkipSample:
        return None


def find(sets: Sequence[ShardSet], keys: Sequence[str]) -> list[tuple[ShardSet, int]]:
    """The samples of these keys, in the order asked for and in every split where they stand.

    Raises DataError, naming every key that is nowhere.
    """
    places: dict[str, list[tuple[ShardSet, int]]] = {key: [] for key in keys}
    for shards in sets:
        for i in range(len(shards)):
            if (key := shards.key_of(i)) in places:
                places[key].append((shards, i))
    if missing := [key for key, found in places.items() if not found]:
        names = ", ".join(map(repr, missing))
        raise DataError(f"no sample has the key {names}; keys here look like {sets[0].key_of(0)!r}")
    return [place for found in places.values() for place in found]
