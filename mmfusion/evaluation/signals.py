"""Tasks on the class of a part, the picture that a spoken name means, and what each subset of modalities knows of the
same thing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt

from mmfusion.data.series import array_of
from mmfusion.evaluation import baselines
from mmfusion.evaluation.bench import Bench, Lacking, Outcome, Result, Retrieval, same_pictures, text_of
from mmfusion.evaluation.pictures import gradients_and_blur
from mmfusion.types import Modality, Part, Sample

# ------------------------------------------------------------------------------------------------- which class is it?


@dataclass(frozen=True)
class Labelled:
    """A part that has a class: its sample, itself, and the class."""

    sample: Sample
    part: Part
    label: str


def class_by_name(
    bench: Bench,
    *,
    source: str | None,
    modality: Modality,
    label: str,
    cluster: str | None = None,
    window_s: Annotated[float, Gt(0)] = 8.0,
    language: str = "en",
) -> Result:
    """Which of the class names a picture, clip or series is nearest to, in the shared space alone.

    `label` and `cluster` name labels of the samples (without `cluster` each sample is its own). A class is called what
    the training samples' text calls it most often. A series is cut into windows that overlap by half; their embeddings
    are averaged. Beside it stands a logistic regression on simple features of the training shards' parts.
    """
    bench.require(modality, "text")
    asked = labelled(bench, bench.samples(bench.split, source), modality, label)
    train = labelled(bench, bench.samples("train", source), modality, label)
    called = class_names(train, lambda sample: text_of(sample, language))
    asked = [item for item in asked if item.label in called]
    if not asked or len(called) < 2:
        raise Lacking(f"no {modality} of {source!r} with two or more {label!r} in training and some in {bench.split!r}")
    clusters = tuple(item.sample.labels.get(cluster or "", item.sample.key) for item in asked)
    outcome, found = classify(bench, asked, train, called, clusters, window_s=window_s, language=language)
    return Result((outcome,), found)


def classify(
    bench: Bench,
    asked: Sequence[Labelled],
    train: Sequence[Labelled],
    called: Mapping[str, str],
    clusters: Sequence[str],
    *,
    window_s: float,
    language: str,
    metric: str = "accuracy",
) -> tuple[Outcome, Retrieval]:
    """Each part that is asked about against the names `called` of all classes; chance is always the commonest class."""
    classes = sorted(called)
    names = tuple(called[c] for c in classes)
    scores = bench.embed_whole([item.part for item in asked], window_s) @ bench.embed_names(names, language).T
    right = np.array([[c == item.label for c in classes] for item in asked])
    found = Retrieval(
        tuple(item.part for item in asked), tuple(item.sample.key for item in asked), tuple(clusters),
        names, scores, right,
    )  # fmt: skip
    chance = baselines.commonest([item.label for item in asked])[1]
    return Outcome(metric, found.recall(1), clusters, chance, _regression(bench, train, asked)), found


def _regression(bench: Bench, train: Sequence[Labelled], asked: Sequence[Labelled]) -> dict[str, np.ndarray]:
    """Right or wrong, for each that is asked; nothing where it has nothing to learn from or cannot read the series."""
    if len({item.label for item in train}) < 2:
        return {}
    known = simple_features(bench, [item.part for item in (*train, *asked)])
    if known is None:
        return {}

    def right() -> np.ndarray:
        learnt, labels = known[: len(train)], [item.label for item in train]
        answers = baselines.logistic_regression(learnt, labels, known[len(train) :])
        return np.array([answer == item.label for answer, item in zip(answers, asked, strict=True)], dtype=float)

    depends_on = tuple((item.sample.url, item.sample.key, item.part.file, item.label) for item in (*train, *asked))
    return {"logistic regression": bench.remember(depends_on, right)}


def labelled(bench: Bench, samples: Sequence[Sample], modality: Modality, label: str) -> list[Labelled]:
    """The first part of a modality of each sample that has the label; those that cannot be decoded are left out."""
    return [
        Labelled(sample, parts[0], sample.labels[label])
        for sample in samples
        if label in sample.labels and (parts := sample.of(modality)) and bench.decoded(parts[0]) is not None
    ]


def class_names(items: Sequence[Labelled], text: Callable[[Sample], str | None], least: float = 0.0) -> dict[str, str]:
    """What the texts call each class most often; its label in plain words where fewer than the share `least` do.

    Classes that would be called alike, which nothing could tell apart, are called by their labels.
    """
    texts: dict[str, Counter[str]] = {}
    for item in items:
        texts.setdefault(item.label, Counter())[text(item.sample) or item.label] += 1
    called = {label: min(counts, key=lambda name: (-counts[name], name)) for label, counts in texts.items()}
    plain = {label: label.replace("_", " ").replace("-", " ") for label in texts}
    called = {
        label: name if texts[label][name] >= least * texts[label].total() else plain[label]
        for label, name in called.items()
    }
    for own in (plain, {label: label for label in plain}):
        borne = Counter(called.values())
        called = {label: name if borne[name] == 1 else own[label] for label, name in called.items()}
    return called


def simple_features(bench: Bench, parts: Sequence[Part]) -> np.ndarray | None:
    """What a baseline sees of parts of one modality, [n, F]; None where series differ in their number of channels."""
    if parts[0].type == "image":
        return bench.features(gradients_and_blur, parts)
    if len({len(part.channels) for part in parts}) > 1:
        return None
    return bench.features(_features, parts)


def _features(parts: Sequence[Part]) -> list[np.ndarray]:
    return [
        baselines.sound_features(array_of(part), part.rate_hz or 16000)
        if part.type == "audio"
        else baselines.series_features(array_of(part))
        for part in parts
    ]


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
