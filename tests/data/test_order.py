"""The order: every sample once a pass, shares as asked, the same for whoever asks, from wherever."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion.data.order import Order, global_batch, permute, seed_of, stable_hash, stripe
from mmfusion.types import DataError


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_is_one_to_one(length: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(length), length, key)), np.arange(length))


def test_a_permutation_looks_random() -> None:
    length = 10_000
    moved = permute(np.arange(length), length, 7)
    assert abs(np.corrcoef(np.arange(length), moved)[0, 1]) < 0.03
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 0.03
    assert (moved == permute(np.arange(length), length, 8)).mean() < 0.002
    seen = {tuple(permute(np.arange(4), 4, key).tolist()) for key in range(2000)}
    assert len(seen) == 24


def test_billions_need_no_memory() -> None:
    order = Order({"a": 3_000_000_000}, None, 0)
    _, index = order.at_many(np.arange(10**12, 10**12 + 50))
    assert len(set(index.tolist())) == 50
    assert index.max() < 3_000_000_000
    _, index = order.at_many(np.arange(2_999_999_990, 3_000_000_010))  # over the end of a pass
    assert index.max() < 3_000_000_000


@pytest.mark.parametrize("length", [1, 2, 37, 70_000])
def test_every_sample_comes_once_a_pass_and_passes_differ(length: int) -> None:
    order = Order({"a": length}, None, 3)
    _, index = order.at_many(np.arange(2 * length))
    first, second = index[:length], index[length:]
    assert np.array_equal(np.sort(first), np.arange(length))
    assert np.array_equal(np.sort(second), np.arange(length))
    assert length < 5 or not np.array_equal(first, second)


def test_every_sample_of_every_source_comes_once_a_pass_of_its_own() -> None:
    lengths = {"a": 50, "b": 7, "c": 23}
    order = Order(lengths, {"a": 1, "b": 2, "c": 1}, 0)
    sources, indexes = order.at_many(np.arange(4000))
    for number, (_, length) in enumerate(lengths.items()):
        picks = indexes[sources == number]
        for turn in range(len(picks) // length):
            assert np.array_equal(np.sort(picks[turn * length : (turn + 1) * length]), np.arange(length))


def test_shares_hold_in_every_batch() -> None:
    weights = {"a": 5.0, "b": 2.0, "c": 0.5, "d": 0.0}
    order = Order(dict.fromkeys(weights, 1000), weights, 0)
    for step in (0, 7, 511, 512, 100_000):
        sources, _ = order.at_many(global_batch(step, 128))
        shares = np.bincount(sources, minlength=4) / 128
        np.testing.assert_allclose(shares, np.array([5, 2, 0.5, 0]) / 7.5, atol=2 / 128)


def test_without_weights_all_sources_are_passed_at_once() -> None:
    lengths = {"a": 600, "b": 300, "c": 100}
    sources, indexes = Order(lengths, None, 0).at_many(np.arange(1000))
    assert np.bincount(sources).tolist() == [600, 300, 100]
    assert len({(int(s), int(i)) for s, i in zip(sources, indexes, strict=True)}) == 1000


def test_one_position_says_what_many_say_and_the_seed_matters() -> None:
    order = Order({"a": 100, "b": 33}, {"a": 1, "b": 1}, 5)
    sources, indexes = order.at_many(np.arange(700))
    assert [order.at(p) for p in range(700)] == [(order.names[s], i) for s, i in zip(sources, indexes, strict=True)]
    _, others = Order({"a": 100, "b": 33}, {"a": 1, "b": 1}, 6).at_many(np.arange(700))
    assert (indexes == others).mean() < 0.1


def test_another_process_sees_the_same_order() -> None:
    code = (
        "import numpy as np; from mmfusion.data.order import *; o = Order({'a': 100, 'b': 33}, None, 5);"
        "print([o.at(p) for p in range(60)], seed_of(5, 17), stable_hash('concept', 'goose'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    order = Order({"a": 100, "b": 33}, None, 5)
    here = ([order.at(p) for p in range(60)], seed_of(5, 17), stable_hash("concept", "goose"))
    assert done.stdout.strip() == " ".join(str(x) for x in here)


def test_seeds_are_63_bits_and_differ() -> None:
    seeds = [seed_of(s, p) for s in range(20) for p in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2)])
def test_stripes_are_equal_and_together_the_batch(world: int, accumulate: int) -> None:
    positions = global_batch(5, 48)
    assert positions.tolist() == list(range(240, 288))
    stripes = [stripe(positions, r, world, accumulate, m) for m in range(accumulate) for r in range(world)]
    assert {len(s) for s in stripes} == {48 // world // accumulate}
    assert sorted(np.concatenate(stripes).tolist()) == positions.tolist()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(DataError, match="batch_size=10 does not divide by 2 ranks x 3"):
        stripe(global_batch(0, 10), 0, 2, 3, 0)
    with pytest.raises(DataError, match="does not divide"):
        stripe(global_batch(0, 2), 0, 4, 1, 0)


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ({}, None, "needs a sample"),
        ({"a": 0}, None, "needs a sample"),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}, "names a, c; the sources are a, b"),
        ({"a": 1}, {"a": 0}, "not all 0"),
        ({"a": 1}, {"a": float("nan")}, ">= 0"),
        ({"a": 1, "b": 1}, {"a": 1, "b": -1}, ">= 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(
    lengths: dict[str, int], weights: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Order(lengths, weights, 0)
