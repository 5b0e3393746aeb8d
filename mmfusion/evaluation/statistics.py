"""From one outcome per example to a number that can be trusted: value, n, clusters and a 95% interval.

Examples that share a stamp, a subject or a concept rise and fall together, so whole clusters are drawn with replacement
(Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x) and the interval is read off the percentiles
(Efron 1979, doi:10.1214/aos/1176344552). With fewer than about ten clusters such an interval is too narrow: the
number of clusters is always printed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import beta

Statistic = Literal["mean", "median"]
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value over n examples in so many clusters; `ci95` is None where one cluster leaves nothing to resample."""

    value: float
    n: int
    clusters: int
    ci95: tuple[float, float] | None


def estimate(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    statistic: Statistic = "mean",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean or median of `values` [n] and its cluster-bootstrap interval; `clusters` [n] names each example's.

    Raises ValueError for no values, unequal lengths or a value that is not finite.
    """
    outcomes = np.asarray(values, dtype=np.float64)
    if outcomes.ndim != 1 or len(outcomes) != len(clusters) or not len(outcomes):
        raise ValueError(f"values {outcomes.shape} and clusters ({len(clusters)},) must be equally long and not empty")
    if not np.isfinite(outcomes).all():
        raise ValueError(f"{int((~np.isfinite(outcomes)).sum())} of {len(outcomes)} outcomes are not finite")
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    value = float(np.mean(outcomes) if statistic == "mean" else np.median(outcomes))
    return Estimate(
        value, len(outcomes), len(names), _interval(outcomes, member, len(names), statistic, value, resamples, seed)
    )


def difference(
    ours: Sequence[float] | np.ndarray,
    theirs: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean of `ours - theirs` [n], paired by example, so that what makes an example hard for both cancels.

    Outcomes lie in 0..1. Where no example differs, the interval says how many could and still none be seen; where ours
    is always the worse, it mirrors that of where it is always the better.
    """
    gap = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(gap) and (gap == -1).all():
        better = difference(theirs, ours, clusters, resamples=resamples, seed=seed)
        mirrored = better.ci95 and (-better.ci95[1], -better.ci95[0])
        return Estimate(-better.value, better.n, better.clusters, mirrored)
    got = estimate(gap, clusters, resamples=resamples, seed=seed)
    if got.ci95 is None or gap.any():
        return got
    unseen = _exact_bounds(0.0, got.clusters)[1]
    return Estimate(got.value, got.n, got.clusters, (-unseen, unseen))


def _interval(
    outcomes: np.ndarray,
    member: np.ndarray,
    clusters: int,
    statistic: Statistic,
    value: float,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    if clusters < 2:
        return None
    if statistic == "mean" and value in (0.0, 1.0) and np.isin(outcomes, (0.0, 1.0)).all():
        return _exact_bounds(value, clusters)
    draws = _draws(clusters, resamples, seed)
    if statistic == "mean":
        sums = np.bincount(member, weights=outcomes, minlength=clusters)
        sizes = np.bincount(member, minlength=clusters)
        replicates = (draws @ sums) / (draws @ sizes)
    else:
        replicates = _weighted_medians(outcomes, draws[:, member])
    low, high = np.percentile(replicates, (2.5, 97.5))
    return float(low), float(high)


def _draws(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample, [resamples, clusters]; each row sums to `clusters`."""
    picks = np.random.default_rng(seed).integers(0, clusters, (resamples, clusters))
    picks += clusters * np.arange(resamples)[:, None]
    counts = np.bincount(picks.ravel(), minlength=resamples * clusters)
    return counts.reshape(resamples, clusters).astype(np.float64)


def _weighted_medians(outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The lower median of `outcomes` [n] repeated `weights` [resamples, n] times, for every row of weights."""
    order = np.argsort(outcomes, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    first = np.argmax(2 * reached >= reached[:, -1:], axis=1)
    return outcomes[order][first]


def _exact_bounds(value: float, clusters: int) -> tuple[float, float]:
    """Where every outcome is right, or every one wrong, resampling sees no spread: the binomial bounds of Clopper and
    Pearson (1934, doi:10.1093/biomet/26.4.404), a cluster counted as one trial."""
    if value == 0.0:
        return 0.0, float(beta.ppf(0.975, 1, clusters))
    return float(beta.ppf(0.025, clusters, 1)), 1.0
