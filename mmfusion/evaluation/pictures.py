"""Tasks that start from a picture: its name among many, concepts that no training shard holds, its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Gt

from mmfusion.data.series import array_of
from mmfusion.evaluation import baselines
from mmfusion.evaluation.bench import (
    Bench,
    Lacking,
    Outcome,
    Result,
    Retrieval,
    Split,
    by_hash,
    chance_of_rank,
    same_pictures,
    text_of,
)
from mmfusion.evaluation.wording import chrf, exact, spelling_similarity
from mmfusion.types import Part, Sample


def pixels(pictures: Sequence[Part]) -> np.ndarray:
    return baselines.pixels([array_of(picture) for picture in pictures])


def gradients_and_blur(pictures: Sequence[Part]) -> np.ndarray:
    return baselines.gradients_and_blur([array_of(picture) for picture in pictures])


FEATURES: Mapping[str, Callable[[Sequence[Part]], np.ndarray]] = {
    "pixel nearest neighbour": pixels,
    "HOG + blur nearest neighbour": gradients_and_blur,
}


@dataclass(frozen=True)
class Named:
    """Pictures with their names: the samples, their decoded pictures, and for each the names that count as right.

    `names[i]` holds the picture's own name first, then those of pictures that are identical to it.
    """

    samples: tuple[Sample, ...]
    pictures: tuple[Part, ...]
    names: tuple[tuple[str, ...], ...]

    def only(self, keep: Iterable[int]) -> Named:
        rows = list(keep)
        return Named(
            tuple(self.samples[i] for i in rows),
            tuple(self.pictures[i] for i in rows),
            tuple(self.names[i] for i in rows),
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(sample.key for sample in self.samples)

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """The cluster of each example; a sample without a concept is its own."""
        return tuple(sample.labels.get("concept", sample.key) for sample in self.samples)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        return tuple(sample.labels.get("category", "") for sample in self.samples)

    @cached_property
    def own(self) -> tuple[str, ...]:
        return tuple(names[0] for names in self.names)

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Each different name once, in reading order."""
        return tuple(dict.fromkeys(self.own))


def named_pictures(bench: Bench, split: Split, source: str | None, language: str) -> Named:
    """The samples that have a picture that can be decoded and a name in the language. Raises Lacking for none."""
    rows: list[tuple[Sample, Part, str]] = []
    for sample in bench.samples(split, source):
        name, pictures = text_of(sample, language), sample.of("image")
        picture = bench.decoded(pictures[0]) if pictures and name else None
        if picture is not None and name:
            rows.append((sample, picture, name))
    if not rows:
        raise Lacking(f"split {split!r} has no picture of source {source or 'any'!r} with a name in {language!r}")
    same = same_pictures([picture for _, picture, _ in rows])
    shared: dict[int, list[str]] = {}
    for number, (_, _, name) in zip(same, rows, strict=True):
        shared.setdefault(number, []).append(name)
    names = [tuple(dict.fromkeys((name, *shared[i]))) for i, (_, _, name) in zip(same, rows, strict=True)]
    return Named(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(names))


def retrieve_names(bench: Bench, asked: Named, candidates: Sequence[str], language: str) -> Retrieval:
    """Each picture against names in one language."""
    scores = bench.embed(asked.pictures) @ bench.embed_names(candidates, language).T
    column = {name: index for index, name in enumerate(candidates)}
    right = np.zeros(scores.shape, dtype=bool)
    for row, names in enumerate(asked.names):
        right[row, [column[name] for name in names if name in column]] = True
    return Retrieval(asked.pictures, asked.keys, asked.concepts, tuple(candidates), scores, right)


def neighbours(bench: Bench, asked: Named, train: Named, k: int) -> dict[str, np.ndarray]:
    """For each way of comparing pictures the k nearest training pictures of each picture asked about, [Q, k]."""
    return {
        name: baselines.nearest(bench.features(make, asked.pictures), bench.features(make, train.pictures), k)
        for name, make in FEATURES.items()
    }


def unseen_in(bench: Bench, concepts: Sequence[str]) -> list[int]:
    """Where the concepts stand that no training shard holds, nor, in the test, a validation shard."""
    known = bench.concepts("train") | (bench.concepts("validation") if bench.split == "test" else set())
    return [i for i, concept in enumerate(concepts) if concept not in known]


def seen_in(bench: Bench, concepts: Sequence[str]) -> list[int]:
    known = bench.concepts("train")
    return [i for i, concept in enumerate(concepts) if concept in known]


# ------------------------------------------------------------------------------------------------------------ the tasks


def picture_to_name(bench: Bench, *, source: str | None, train_source: str | None, language: str = "en") -> Result:
    """Which of all names of the tested source a picture of a seen concept has.

    Any name of an identical picture counts as right, for the model and for the nearest neighbours among the training
    pictures of `train_source`, whose names are their answers.
    """
    bench.require("image", "text")
    everything = named_pictures(bench, bench.split, source, language)
    seen = seen_in(bench, everything.concepts)
    if not seen:
        raise Lacking(f"no concept of split {bench.split!r} stands in the training shards")
    asked = everything.only(seen)
    train = named_pictures(bench, "train", train_source, language)
    found = retrieve_names(bench, asked, everything.candidates, language)
    nearest = neighbours(bench, asked, train, 5)
    outcomes = []
    for k in (1, 5):
        beside = {
            name: np.array([_any_right(asked.names[q], train, row[:k]) for q, row in enumerate(rows)])
            for name, rows in nearest.items()
        }
        outcomes.append(Outcome(f"R@{k}", found.recall(k), asked.concepts, found.chance(k), beside))
    return Result(tuple(outcomes), found)


def _any_right(right: Sequence[str], train: Named, neighbours_of_it: np.ndarray) -> float:
    return float(any(not set(right).isdisjoint(train.names[i]) for i in neighbours_of_it))


def unseen_concepts(bench: Bench, *, source: str | None, train_source: str | None, language: str = "en") -> Result:
    """Pictures of concepts that nobody trained on: which of the unseen names they have, in English and in every other
    language of the split, and which category.

    The baseline answers with the unseen names that are spelt most like the name of the nearest training picture;
    for the category it answers with that picture's.
    """
    bench.require("image", "text")
    everything = named_pictures(bench, bench.split, source, language)
    unseen = unseen_in(bench, everything.concepts)
    if len(unseen) < 2:
        raise Lacking(f"no unseen concept in split {bench.split!r}")
    asked = everything.only(unseen)
    train = named_pictures(bench, "train", train_source, language)
    found = retrieve_names(bench, asked, asked.candidates, language)
    nearest = {name: rows[:, 0] for name, rows in neighbours(bench, asked, train, 1).items()}
    spelt = {
        name: Retrieval(
            found.queries, found.keys, found.clusters, found.candidates,
            spelling_similarity([train.own[i] for i in rows], found.candidates), found.right,
        )
        for name, rows in nearest.items()
    }  # fmt: skip
    middle = chance_of_rank(found.right.sum(1), len(found.candidates))
    outcomes = [
        Outcome("R@1", found.recall(1), asked.concepts, found.chance(1), {n: r.recall(1) for n, r in spelt.items()}),
        Outcome("median rank", found.ranks().astype(float), asked.concepts, middle,
                {n: r.ranks().astype(float) for n, r in spelt.items()}, statistic="median"),
    ]  # fmt: skip
    if all(asked.categories):
        outcomes.append(_category(bench, asked, everything, train, nearest, language))
    outcomes += _other_languages(bench, asked, language)
    return Result(tuple(outcomes), found)


def _category(
    bench: Bench, asked: Named, everything: Named, train: Named, nearest: Mapping[str, np.ndarray], language: str
) -> Outcome:
    """Whether the first of all names, seen and unseen, is of the picture's category."""
    category = dict(zip(everything.own, everything.categories, strict=True))
    first = retrieve_names(bench, asked, everything.candidates, language).scores.argmax(1)
    answers = [category[everything.candidates[i]] for i in first]
    hits = np.array([answer == truth for answer, truth in zip(answers, asked.categories, strict=True)], dtype=float)
    beside = {
        name: np.array([train.categories[i] == truth for i, truth in zip(rows, asked.categories, strict=True)], float)
        for name, rows in nearest.items()
    }
    return Outcome("category accuracy", hits, asked.concepts, baselines.commonest(asked.categories)[1], beside)


def _other_languages(bench: Bench, asked: Named, language: str) -> list[Outcome]:
    """R@1 among the unseen names of each other language, over all languages that name at least two of the concepts."""
    values, clusters, chances = [], [], []
    others = {part.lang for sample in asked.samples for part in sample.of("text") if part.lang} - {language}
    for other in sorted(others):
        named = [(i, name) for i, sample in enumerate(asked.samples) if (name := text_of(sample, other))]
        if len(named) < 2:
            continue
        those = asked.only(i for i, _ in named)
        renamed = Named(those.samples, those.pictures, tuple((name,) for _, name in named))
        found = retrieve_names(bench, renamed, renamed.candidates, other)
        values.append(found.recall(1))
        clusters += those.concepts
        chances.append(np.full(len(named), found.chance(1)))
    if not values:
        return []
    metric = f"R@1 in {len(values)} other language{'s' if len(values) > 1 else ''}"
    return [Outcome(metric, np.concatenate(values), clusters, float(np.concatenate(chances).mean()))]


def captions(
    bench: Bench,
    *,
    source: str | None,
    train_source: str | None,
    language: str = "en",
    limit: Annotated[int, Gt(0)] = 128,
    max_new: Annotated[int, Gt(0)] = 24,
) -> Result:
    """What the decoder says about pictures: whether it is exactly a right name, and how near it comes (chrF).

    Asked on up to `limit` pictures each of seen and of unseen concepts, chosen by a hash of the key. Chance is the
    caption of another of these pictures; the baseline the name of the nearest training picture.
    """
    bench.require("image", "text")
    everything = named_pictures(bench, bench.split, source, language)
    train = named_pictures(bench, "train", train_source, language)
    outcomes: list[Outcome] = []
    for kind, rows in {
        "seen": seen_in(bench, everything.concepts),
        "unseen": unseen_in(bench, everything.concepts),
    }.items():
        rows = sorted(rows, key=lambda i: by_hash(everything.keys[i]))[:limit]
        if len(rows) < 2:
            continue
        asked = everything.only(rows)
        said = bench.model.generate_parts([[picture] for picture in asked.pictures], language, max_new)
        near = {name: [train.own[i[0]] for i in found] for name, found in neighbours(bench, asked, train, 1).items()}
        shuffled = [*asked.own[1:], asked.own[0]]
        for metric, score in {"exact": exact, "chrF": chrf}.items():
            beside = {name: score(answers, asked.names) for name, answers in near.items()}
            chance = float(score(shuffled, asked.names).mean())
            outcomes.append(Outcome(f"{metric}, {kind}", score(said, asked.names), asked.concepts, chance, beside))
    if not outcomes:
        raise Lacking("fewer than two pictures of seen concepts, and of unseen ones")
    return Result(tuple(outcomes))
