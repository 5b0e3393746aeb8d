"""Intervals against values worked by hand and against the textbook formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmfusion.evaluation.statistics import _weighted_medians, difference, estimate


def test_two_clusters_by_hand() -> None:
    # Cluster a = {1, 1}, b = {0}. Drawn twice: aa -> 1 (p 1/4), ab or ba -> 2/3 (p 1/2), bb -> 0 (p 1/4).
    got = estimate([1, 1, 0], ["a", "a", "b"])
    assert got.value == pytest.approx(2 / 3)
    assert (got.n, got.clusters, got.ci95) == (3, 2, (0.0, 1.0))


def test_three_clusters_against_every_possible_resample() -> None:
    values, clusters = [0.1, 0.5, 0.2, 0.9], ["a", "a", "b", "c"]
    sums, sizes = np.array([0.6, 0.2, 0.9]), np.array([2, 1, 1])
    every = [sums[list(draw)].sum() / sizes[list(draw)].sum() for draw in itertools.product(range(3), repeat=3)]
    low, high = np.percentile(every, (2.5, 97.5), method="inverted_cdf")
    got = estimate(values, clusters, resamples=20_000)
    assert got.ci95 == pytest.approx((low, high), abs=0.02)


def test_single_examples_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).random(400)
    got = estimate(values, [str(i) for i in range(400)], resamples=4000)
    half = 1.96 * values.std(ddof=1) / 20
    assert got.ci95 is not None
    assert got.ci95 == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_clusters_widen_the_interval() -> None:
    # 20 clusters of ten equal outcomes hold no more than 20 examples.
    values = np.repeat(np.arange(20) % 2, 10)
    apart = estimate(values, [str(i) for i in range(200)])
    together = estimate(values, [str(i // 10) for i in range(200)])
    assert apart.ci95 is not None
    assert together.ci95 is not None
    assert together.ci95[1] - together.ci95[0] > 2.5 * (apart.ci95[1] - apart.ci95[0])


def test_same_seed_same_interval() -> None:
    values, clusters = np.random.default_rng(0).random(50), [str(i % 9) for i in range(50)]
    assert estimate(values, clusters, seed=3) == estimate(values, clusters, seed=3)
    assert estimate(values, clusters, seed=3) != estimate(values, clusters, seed=4)


def test_none_right_is_not_certainty() -> None:
    got = estimate(np.zeros(30), [str(i) for i in range(30)])
    assert got.ci95 == pytest.approx((0, 1 - 0.025 ** (1 / 30)))  # Clopper-Pearson by hand
    assert estimate(np.ones(30), [str(i) for i in range(30)]).ci95 == pytest.approx((0.025 ** (1 / 30), 1))


def test_one_cluster_has_no_interval() -> None:
    assert estimate([0, 1], ["a", "a"]).ci95 is None


def test_paired_difference_cancels_what_is_shared() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=300) * 10
    ours, theirs = hard + 0.5 + 0.1 * rng.normal(size=300), hard
    got = difference(ours, theirs, [str(i) for i in range(300)])
    assert got.ci95 is not None
    assert 0.45 < got.ci95[0] < 0.5 < got.ci95[1] < 0.55


def test_no_difference_is_not_certainty_either() -> None:
    got = difference([0, 1, 1], [0, 1, 1], ["a", "b", "c"])
    bound = 1 - 0.025 ** (1 / 3)
    assert got.ci95 == pytest.approx((-bound, bound))


def test_always_worse_mirrors_always_better() -> None:
    ones, zeros, names = [1, 1, 1], [0, 0, 0], ["a", "b", "c"]
    assert difference(ones, zeros, names).ci95 == pytest.approx((0.025 ** (1 / 3), 1))  # Clopper-Pearson by hand
    worse = difference(zeros, ones, names)
    assert worse.value == -1
    assert worse.ci95 == pytest.approx((-1, -(0.025 ** (1 / 3))))
    assert difference([0, 0], [1, 1], ["a", "a"]).ci95 is None


def test_medians() -> None:
    assert estimate([5, 1, 9], ["a", "b", "c"], statistic="median").value == 5
    values = np.array([9.0, 1.0, 5.0])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [1.0, 2.0, 1.0]])  # {1,5,9}, {9,9,9}, {1,1,5,9}
    assert _weighted_medians(values, weights).tolist() == [5, 9, 1]


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1, 2], ["a"]), ([np.nan], ["a"]), ([[1.0]], ["a"])], ids=str
)
def test_refuses(values: list, clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"equally long|not finite"):
        estimate(values, clusters)
