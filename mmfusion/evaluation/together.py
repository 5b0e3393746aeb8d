"""What stands together in samples, for tasks that know nothing of the shards before they see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmfusion.data.pipeline import chosen_text
from mmfusion.evaluation import baselines
from mmfusion.evaluation.bench import Bench, Split
from mmfusion.evaluation.pictures import pixels
from mmfusion.evaluation.signals import simple_features
from mmfusion.types import DataError, Modality, Part, Sample


@dataclass(frozen=True)
class Pair:
    """A sample with the parts that stand for it in two modalities."""

    sample: Sample
    parts: tuple[Part, Part]


def words(sample: Sample) -> str | None:
    text = chosen_text(sample)
    return text.text if text else None


def _part(bench: Bench, sample: Sample, modality: Modality) -> Part | None:
    """What stands for a sample in a modality: its first part, of texts the English one; None if it cannot be read."""
    if modality == "text":
        return chosen_text(sample)
    parts = sample.of(modality)
    try:
        return parts[0] if parts and bench.decoded(parts[0]) is not None else None
    except DataError as error:
        raise DataError(f"{sample.url}: key {sample.key!r}: {error}") from error


def together(bench: Bench, split: Split, source: str | None, one: Modality, other: Modality, most: int) -> list[Pair]:
    """The samples that have both modalities."""
    found = ((s, _part(bench, s, one), _part(bench, s, other)) for s in bench.samples(split, source, most))
    return [Pair(sample, (a, b)) for sample, a, b in found if a is not None and b is not None]


def cluster_of(sample: Sample, part: Part) -> str:
    """What an example rises and falls with: who was measured, else its concept, else itself; a text with its words."""
    concept = sample.labels.get("concept")
    if part.type == "text":
        return concept or part.text or sample.key
    return sample.labels.get("subject") or part.subject or concept or sample.key


def media_of(bench: Bench) -> list[Modality]:
    return [modality for modality in bench.model.modalities if modality != "text"]


def nearest_of(bench: Bench, asked: Sequence[Part], train: Sequence[Part], k: int) -> dict[str, np.ndarray]:
    """By the name of the way to compare, the k nearest training parts [n, k] of each; none where there is no way."""
    if not train:
        return {}
    both = [*asked, *train]
    if both[0].type == "image":
        name, features = "pixel nearest neighbour", bench.features(pixels, both)
    else:
        name, features = "feature nearest neighbour", simple_features(bench, both)
        if features is None:
            return {}
        known = features[len(asked) :]
        features = (features - known.mean(0)) / (known.std(0) + 1e-6)
    return {name: baselines.nearest(features[: len(asked)], features[len(asked) :], k)}


def lacks(bench: Bench, source: str | None, most: int, what: str) -> str:
    held = {part.type for sample in bench.samples(bench.split, source, most) for part in sample.parts}
    reads = ", ".join(bench.model.modalities)
    has = f"split {bench.split!r} has {', '.join(sorted(held)) or 'no samples'}"
    return f"fewer than two samples with {what} that the model reads ({reads}); {has}"
