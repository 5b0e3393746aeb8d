"""Tasks that start from sound or from a sensor series: the class of a clip or series, the picture a spoken name means,
and what each subset of modalities knows of the same thing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from mmfusion.data.series import array_of, windows
from mmfusion.evaluation import baselines
from mmfusion.evaluation.bench import Bench, Lacking, Outcome, Result, Retrieval, same_pictures, text_of
from mmfusion.types import Part, Sample

# ------------------------------------------------------------------------------------------------- which class is it?


@dataclass(frozen=True)
class _Labelled:
    sample: Sample
    part: Part
    label: str


def class_by_name(
    bench: Bench,
    *,
    source: str,
    modality: Literal["audio", "sensor"],
    label: str,
    cluster: str | None = None,
    window_s: Annotated[float, Gt(0)] = 8.0,
    language: str = "en",
) -> Result:
    """Which of the class names a clip or series is nearest to, in the shared space alone.

    `label` and `cluster` name labels of the samples (without `cluster` each sample is its own). A class is called what
    the training samples' text calls it most often. A series is cut into windows that overlap by half; their embeddings
    are averaged. Beside it stands a logistic regression on simple features of the training shards' clips or series.
    """
    bench.require(modality, "text")
    asked = _labelled(bench, bench.samples(bench.split, source), modality, label)
    train = _labelled(bench, bench.samples("train", source), modality, label)
    called = _class_names(train, language)
    asked = [item for item in asked if item.label in called]
    if not asked or len(called) < 2:
        raise Lacking(f"no {modality} of {source!r} with two or more {label!r} in training and some in {bench.split!r}")
    classes = sorted(called)
    embedded = np.stack([embed_series(bench, item.part, window_s) for item in asked])
    scores = embedded @ bench.embed_names([called[c] for c in classes], language).T
    right = np.array([[c == item.label for c in classes] for item in asked])
    clusters = tuple(item.sample.labels.get(cluster or "", item.sample.key) for item in asked)
    found = Retrieval(
        tuple(item.part for item in asked), tuple(item.sample.key for item in asked), clusters,
        tuple(called[c] for c in classes), scores, right,
    )  # fmt: skip
    chance = baselines.commonest([item.label for item in asked])[1]
    return Result((Outcome("accuracy", found.recall(1), clusters, chance, _regression(train, asked)),), found)


def _regression(train: Sequence[_Labelled], asked: Sequence[_Labelled]) -> dict[str, np.ndarray]:
    """Right or wrong, for each that is asked; nothing where series have different channels, which it cannot read."""
    features = [_features(item.part) for item in (*train, *asked)]
    if len({len(one) for one in features}) > 1:
        return {}
    known, wanted = np.stack(features[: len(train)]), np.stack(features[len(train) :])
    answers = baselines.logistic_regression(known, [item.label for item in train], wanted)
    hits = [answer == item.label for answer, item in zip(answers, asked, strict=True)]
    return {"logistic regression": np.array(hits, dtype=float)}


def _labelled(
    bench: Bench, samples: Sequence[Sample], modality: Literal["audio", "sensor"], label: str
) -> list[_Labelled]:
    found = []
    for sample in samples:
        parts = sample.of(modality)
        part = bench.decoded(parts[0]) if parts and label in sample.labels else None
        if part is not None:
            found.append(_Labelled(sample, part, sample.labels[label]))
    return found


def _class_names(train: Sequence[_Labelled], language: str) -> dict[str, str]:
    texts: dict[str, Counter[str]] = {}
    for item in train:
        texts.setdefault(item.label, Counter())[text_of(item.sample, language) or item.label] += 1
    return {label: min(counts, key=lambda text: (-counts[text], text)) for label, counts in texts.items()}


def _features(part: Part) -> np.ndarray:
    if part.type == "audio":
        return baselines.sound_features(array_of(part), part.rate_hz or 16000)
    return baselines.series_features(array_of(part))


def embed_series(bench: Bench, part: Part, window_s: float) -> np.ndarray:
    """[E]: of a series the mean over its windows, each half overlapping the next; a sound is one window."""
    cut = list(windows(part, window_s, window_s / 2)) if part.type == "sensor" else [part]
    return baselines.unit(bench.embed(cut).mean(0))


# ---------------------------------------------------------------------------------------- which picture does it name?


@dataclass(frozen=True)
class _Thing:
    """A thing that several samples show: its picture, its name, its own sound."""

    picture: Part
    name: str
    sound: Part | None


def spoken_to_picture(bench: Bench, *, source: str | None, language: str = "en") -> Result:
    """Which of all pictures a spoken name means; its clip was in nobody's training.

    Asked of things whose pictures and other clips were in training, and of things that were not. Candidates are all
    different pictures of the source, of any split; another one of the same name is right too. Clusters are things.
    """
    bench.require("audio", "image", "text")
    things, which = _things(bench, source, language)
    spoken = [(sample, part) for sample, part in _spoken(bench, source) if sample.key in which]
    if not spoken or len(things) < 2:
        raise Lacking(f"no spoken names with pictures in split {bench.split!r}")
    scores = bench.embed([part for _, part in spoken]) @ bench.embed([thing.picture for thing in things]).T
    names = tuple(thing.name for thing in things)
    right = np.array([[name == names[which[sample.key]] for name in names] for sample, _ in spoken])
    found = Retrieval(
        queries=tuple(part for _, part in spoken),
        keys=tuple(sample.key for sample, _ in spoken),
        clusters=tuple(names[which[sample.key]] for sample, _ in spoken),
        candidates=names,
        scores=scores,
        right=right,
        pictures=tuple(thing.picture for thing in things),
    )
    known = bench.concepts("train")
    seen = np.array([sample.labels.get("concept") in known for sample, _ in spoken])
    outcomes = []
    for kind, rows in {"seen": seen.nonzero()[0], "unseen": (~seen).nonzero()[0]}.items():
        for k in (1, 5) if len(rows) else ():
            clusters = [found.clusters[i] for i in rows]
            metric = f"R@{k} of {len(things)}, {kind} things"
            outcomes.append(Outcome(metric, found.recall(k)[rows], clusters, found.only(rows).chance(k)))
    return Result(tuple(outcomes), found)


def by_modality(bench: Bench, *, source: str | None, language: str = "en") -> Result:
    """The name of a thing from its picture, its spoken name, its own sound, and from every combination of them. The
    pictures and sounds of these things were in training, the spoken clips were not.

    A combination is the mean of the unit embeddings.
    """
    bench.require("image", "audio", "text")
    things, which = _things(bench, source, language)
    known = bench.concepts("train")
    asked = [
        (sample, part)
        for sample, part in _spoken(bench, source)
        if sample.labels.get("concept") in known and sample.key in which and things[which[sample.key]].sound
    ]
    if not asked:
        raise Lacking(f"no known thing with a picture, a sound, and a spoken name in split {bench.split!r}")
    rows = [which[sample.key] for sample, _ in asked]
    sounds = [sound for row in rows if (sound := things[row].sound) is not None]
    embedded: Mapping[str, np.ndarray] = {
        "picture": bench.embed([things[row].picture for row in rows]),
        "speech": bench.embed([part for _, part in asked]),
        "sound": bench.embed(sounds),
    }
    candidates = tuple(dict.fromkeys(thing.name for thing in things))
    names = bench.embed_names(candidates, language)
    right = np.array([[name == things[row].name for name in candidates] for row in rows])
    clusters = tuple(things[row].name for row in rows)
    outcomes = []
    for size in (1, 2, 3):
        for subset in itertools.combinations(embedded, size):
            scores = baselines.unit(np.mean([embedded[m] for m in subset], axis=0)) @ names.T
            found = Retrieval((), (), clusters, candidates, scores, right)
            metric = f"R@1 from {' + '.join(subset)}"
            outcomes.append(Outcome(metric, found.recall(1), clusters, found.chance(1), subset=subset))
    return Result(tuple(outcomes))


def _things(bench: Bench, source: str | None, language: str) -> tuple[list[_Thing], dict[str, int]]:
    """The different pictures of a source over all splits, and which of them each sample shows, by key."""
    samples = [s for split in ("train", "validation", "test") for s in bench.samples(split, source) if s.of("image")]
    shown = [(s, picture) for s in samples if (picture := bench.decoded(s.of("image")[0])) is not None]
    numbers = same_pictures([picture for _, picture in shown])
    names: dict[int, str] = {}
    sounds: dict[int, Part] = {}
    pictures: dict[int, Part] = {}
    for number, (sample, picture) in zip(numbers, shown, strict=True):
        pictures.setdefault(number, picture)
        if name := text_of(sample, language):
            names.setdefault(number, name)
        own = next((part for part in sample.of("audio") if part.kind == "sound"), None)
        if own and number not in sounds and (decoded := bench.decoded(own)) is not None:
            sounds[number] = decoded
    order = {number: index for index, number in enumerate(sorted(names))}
    things = [_Thing(pictures[number], names[number], sounds.get(number)) for number in order]
    which = {s.key: order[n] for n, (s, _) in zip(numbers, shown, strict=True) if n in order}
    return things, which


def _spoken(bench: Bench, source: str | None) -> list[tuple[Sample, Part]]:
    """Every spoken name of the split with its sample."""
    return [
        (sample, decoded)
        for sample in bench.samples(bench.split, source)
        for part in sample.of("audio")
        if part.kind == "speech" and (decoded := bench.decoded(part)) is not None
    ]
