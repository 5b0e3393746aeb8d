"""How near two wordings are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmfusion.wording import says


def exact(said: Sequence[str], right: Sequence[Sequence[str]]) -> np.ndarray:
    """1 where what was said is one of the right wordings, but for case and white space, [n]."""
    return np.array([float(says(s, names)) for s, names in zip(said, right, strict=True)])


def chrf(said: Sequence[str], right: Sequence[Sequence[str]]) -> np.ndarray:
    """chrF of each sentence against the nearest of its right wordings, 0..1, [n] (Popović 2015, aclanthology W15-3049).

    Character n-grams of 1 to 6 without white space, beta 2. Orders that one of the two is too short for are left out of
    the averages, as sacreBLEU does: with torchmetrics's smoothing "ox" for "ox" would score a third.
    """
    return np.array([max(_chrf(s, r) for r in names) for s, names in zip(said, right, strict=True)])


def _chrf(said: str, right: str, orders: int = 6, beta: float = 2.0) -> float:
    ours, theirs = "".join(said.split()), "".join(right.split())
    precisions, recalls = [], []
    for n in range(1, min(orders, len(ours), len(theirs)) + 1):
        a = Counter(ours[i : i + n] for i in range(len(ours) - n + 1))
        b = Counter(theirs[i : i + n] for i in range(len(theirs) - n + 1))
        shared = (a & b).total()
        precisions.append(shared / a.total())
        recalls.append(shared / b.total())
    precision, recall = np.mean(precisions or [0.0]), np.mean(recalls or [0.0])
    if precision + recall == 0:
        return 0.0
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def spelling_similarity(names: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
    """Cosines [n, C] of the character 2- to 4-grams of names and candidates, rare ones weighing more."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4))
    known = grams.fit_transform(list(candidates))
    return np.asarray((grams.transform(list(names)) @ known.T).todense())
