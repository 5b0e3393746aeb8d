"""Samples to look at: chosen by key and seed alone, from every source in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_media import picture_sample, spoken_sample, tar, watch_sample, write_set

from mmfusion.data.shards import ShardSet, entries_of
from mmfusion.data.survey import choose, find
from mmfusion.types import DataError


def keys(shards: ShardSet, **how: Any) -> list[str]:
    return [shards.key_of(i) for i in choose(shards, **{"n": 6, "seed": 0, **how})]


def test_each_source_gives_as_many_and_small_ones_all(mixed: Path) -> None:
    shards = ShardSet(mixed, "train")  # 20 p, 8 s, 6 w
    assert sorted(key[0] for key in keys(shards)) == ["p", "p", "s", "s", "w", "w"]
    assert sorted(key[0] for key in keys(shards, n=25)) == ["p"] * 11 + ["s"] * 8 + ["w"] * 6
    assert sorted(keys(shards, n=1000)) == sorted(shards.key_of(i) for i in range(34))


def test_the_choice_is_of_key_and_seed_not_of_place(mixed: Path, tmp_path: Path) -> None:
    shards = ShardSet(mixed, "train")
    assert keys(shards) == keys(ShardSet(mixed, "train"))
    assert keys(shards) != keys(shards, seed=1)
    write_set(tmp_path, {"watch.tar": ("train", [watch_sample(i) for i in reversed(range(6))])})
    moved = ShardSet(tmp_path, "train")
    assert keys(moved, n=3) == keys(shards, n=3, source="watch")


def test_one_source_is_found_among_others_in_a_shard(tmp_path: Path) -> None:
    samples = [picture_sample(i) for i in range(9)] + [spoken_sample(i) for i in range(4)]
    write_set(tmp_path, {"all.tar": ("train", samples)})
    shards = ShardSet(tmp_path, "train")
    assert sorted(keys(shards, source="spoken")) == ["s0000", "s0001", "s0002", "s0003"]
    with pytest.raises(DataError, match=r"no source 'speech' in split 'train'; it has all, pictures, spoken"):
        choose(shards, n=2, seed=0, source="speech")


def test_keys_are_found_in_the_order_asked_for_and_missing_ones_named(mixed: Path) -> None:
    sets = [ShardSet(mixed, split) for split in ("train", "validation")]
    found = find(sets, ["p1002", "w0001"])
    assert [(shards.split, shards.key_of(i)) for shards, i in found] == [("validation", "p1002"), ("train", "w0001")]
    with pytest.raises(DataError, match=r"no sample has the key 'x', 'y'; keys here look like 'p0000'"):
        find(sets, ["x", "p0000", "y"])


def test_plain_tars_are_a_set_too(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", [("a.txt", b"one"), ("b.txt", b"two")])
    shards = ShardSet(tmp_path, "train", entries_of(tmp_path, "train"))
    assert sorted(keys(shards)) == ["a", "b"]
