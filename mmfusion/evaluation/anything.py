"""Tasks for any shards, built from what their samples hold: what stands together can be retrieved, what has labels can
be classified, what has a text can be captioned.

Each looks at up to `most` samples of each kind of shard, chosen by a hash of their keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Gt

from mmfusion.data.pipeline import concept_of
from mmfusion.evaluation.bench import Bench, Lacking, Outcome, Result, Retrieval, chance_of_rank, identity
from mmfusion.evaluation.signals import Labelled, class_names, classify, labelled
from mmfusion.evaluation.together import Pair, cluster_of, lacks, media_of, nearest_of, together, words
from mmfusion.evaluation.wording import chrf, exact
from mmfusion.types import Part

MOST = 2000


# ----------------------------------------------------------------------------------------------------------- retrieval


def retrieval(
    bench: Bench,
    *,
    source: str | None = None,
    most: Annotated[int, Gt(0)] = MOST,
    window_s: Annotated[float, Gt(0)] = 8.0,
) -> Result:
    """From each modality to each that stands beside it in samples: which one belongs to it, among those of up to 2,000
    samples. One of the same concept or the same text, or an equal one, is right too.

    A sample's first part of a modality stands for it, of texts the English one. The baseline answers with the texts of
    the nearest training parts: by pixels, or by simple features of sound and series.
    """
    outcomes: list[Outcome] = []
    shown: Retrieval | None = None
    for one, other in itertools.combinations(bench.model.modalities, 2):
        rows = together(bench, bench.split, source, one, other, most)
        if len(rows) < 2:
            continue
        same = _same(rows)
        embedded = [bench.embed_whole([row.parts[k] for row in rows], window_s) for k in (0, 1)]
        for asked, sought in ((0, 1), (1, 0)):
            found = _retrieve(rows, asked, sought, embedded[asked] @ embedded[sought].T, same)
            if len(found.candidates) < 2:
                continue
            to_text = asked == 0 and other == "text"
            beside = _neighbours(bench, source, rows, found, most) if to_text else {}
            if to_text and shown is None:
                shown = found
            outcomes += _outcomes(f"{(one, other)[asked]} to {(one, other)[sought]}", found, beside)
    if not outcomes:
        raise Lacking(lacks(bench, source, most, "two of the modalities"))
    return Result(tuple(outcomes), shown)


def _same(rows: Sequence[Pair]) -> np.ndarray:
    """[n, n] bool: which samples are right for one another."""
    columns: list[list[Hashable]] = [
        [concept_of(row.sample, -1 - i) for i, row in enumerate(rows)],
        [words(row.sample) or i for i, row in enumerate(rows)],
        *([_equal(row.parts[k]) for row in rows] for k in (0, 1)),
    ]
    numbers = [np.array([{v: n for n, v in enumerate(dict.fromkeys(c))}[v] for v in c]) for c in columns]
    return np.logical_or.reduce([number[:, None] == number for number in numbers])


def _equal(part: Part) -> Hashable:
    return part.text if part.type == "text" else identity(part)


def _retrieve(rows: Sequence[Pair], asked: int, sought: int, scores: np.ndarray, same: np.ndarray) -> Retrieval:
    """All samples' parts `asked` against the different parts `sought`; scores[n, n] and same[n, n] by sample."""
    groups: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_equal(row.parts[sought]), []).append(i)
    firsts = [of_one[0] for of_one in groups.values()]
    return Retrieval(
        queries=tuple(row.parts[asked] for row in rows),
        keys=tuple(row.sample.key for row in rows),
        clusters=tuple(cluster_of(row.sample, row.parts[asked]) for row in rows),
        candidates=tuple(words(rows[i].sample) or rows[i].sample.key for i in firsts),
        scores=scores[:, firsts],
        right=np.stack([same[:, of_one].any(1) for of_one in groups.values()], axis=1),
    )


def _neighbours(
    bench: Bench, source: str | None, rows: Sequence[Pair], found: Retrieval, most: int
) -> dict[str, np.ndarray]:
    """Whether the texts of each part's five nearest training parts are right, [n, 5], the nearest first."""
    train = together(bench, "train", source, rows[0].parts[0].type, "text", most)
    near = nearest_of(bench, found.queries, [row.parts[0] for row in train], 5)
    concepts = [concept_of(row.sample, -1 - i) for i, row in enumerate(train)]
    hits: dict[str, np.ndarray] = {}
    for name, nearest in near.items():
        of_each = []
        for i, neighbours in enumerate(nearest):
            texts = {found.candidates[c] for c in np.flatnonzero(found.right[i])}
            concept = concept_of(rows[i].sample, 1)
            of_each.append([train[t].parts[1].text in texts or concepts[t] == concept for t in neighbours])
        hits[name] = np.array(of_each)
    return hits


def _outcomes(pair: str, found: Retrieval, beside: dict[str, np.ndarray]) -> Iterator[Outcome]:
    total = len(found.candidates)
    for k in (1, 5):
        if k < total:
            near = {name: hits[:, :k].any(1).astype(float) for name, hits in beside.items()}
            yield Outcome(f"{pair}, R@{k}", found.recall(k), found.clusters, found.chance(k), near)
    chance = chance_of_rank(found.right.sum(1), total)
    yield Outcome(f"{pair}, median rank", found.ranks().astype(float), found.clusters, chance, statistic="median")


# -------------------------------------------------------------------------------------------------------------- classes


def classes(
    bench: Bench,
    *,
    source: str | None = None,
    labels: Sequence[str] | None = None,
    most: Annotated[int, Gt(0)] = MOST,
    most_classes: Annotated[int, Gt(1)] = 50,
    window_s: Annotated[float, Gt(0)] = 8.0,
) -> Result:
    """For each label and each modality: which of the class names a part is nearest to, in the shared space alone.

    `labels` that are asked about; by default all that have 2 to `most_classes` classes, but for subjects and speakers,
    which are nobody's names; of labels that divide the parts alike, one. A class is called what most of its training
    samples' texts call it, else by its label. Beside it stands a logistic regression on simple features of training
    parts; chance is always the commonest class.
    """
    bench.require("text")
    asked_of = bench.samples(bench.split, source, most)
    train_of = bench.samples("train", source, most)
    known = {label for sample in asked_of for label in sample.labels} - {"subject", "speaker"}
    known = sorted(known, key=lambda label: (label == "concept", label))  # often another label once more
    divided: set[tuple[int, ...]] = set()
    outcomes: list[Outcome] = []
    shown: Retrieval | None = None
    for label, modality in itertools.product(known if labels is None else labels, media_of(bench)):
        asked, train = (labelled(bench, of, modality, label) for of in (asked_of, train_of))
        learnt = train if train_of else asked
        called = class_names(learnt, words, least=0.5)
        asked = [item for item in asked if item.label in called]
        division = _division(asked)
        if not asked or division in divided or not 2 <= len(called) <= min(most_classes, len(learnt) // 2):
            continue
        divided.add(division)
        clusters = tuple(cluster_of(item.sample, item.part) for item in asked)
        outcome, found = classify(
            bench, asked, train, called, clusters,
            window_s=window_s, language="en", metric=f"{label} from {modality}, accuracy",
        )  # fmt: skip
        outcomes.append(outcome)
        shown = shown or found
    if not outcomes:
        among = f"; its labels are {', '.join(known)}" if known else ", which has no labels"
        raise Lacking(f"no label with 2 to {most_classes} classes in split {bench.split!r}{among}")
    return Result(tuple(outcomes), shown)


def _division(items: Sequence[Labelled]) -> tuple[int, ...]:
    """Which parts are together, whatever their label is called: each part's identity and the first one like it."""
    first: dict[str, int] = {}
    return tuple(n for i, item in enumerate(items) for n in (id(item.part), first.setdefault(item.label, i)))


# ------------------------------------------------------------------------------------------------------------- captions


def captions(
    bench: Bench,
    *,
    source: str | None = None,
    limit: Annotated[int, Gt(1)] = 128,
    max_new: Annotated[int, Gt(0)] = 24,
    most: Annotated[int, Gt(0)] = MOST,
) -> Result:
    """What the decoder says about up to 128 parts of each modality: whether it is exactly a text of the sample, and
    how near it comes (chrF); of speech, what was said counts.

    It is asked in the text's language; where texts name none, without one if the training shards name none either, else
    in English. Chance is the text of another of these samples, the baseline that of the nearest training part.
    """
    outcomes: list[Outcome] = []
    for modality in media_of(bench):
        rows = together(bench, bench.split, source, modality, "text", most)[:limit]
        if len(rows) < 2:
            continue
        train = together(bench, "train", source, modality, "text", most)
        right = [_right(row) for row in rows]
        said = _say(bench, rows, "" if train else "en", max_new)
        near = {
            name: [_right(train[i])[0] for i in nearest[:, 0]]
            for name, nearest in nearest_of(
                bench, [row.parts[0] for row in rows], [row.parts[0] for row in train], 1
            ).items()
        }
        shuffled = [names[0] for names in (*right[1:], right[0])]
        clusters = tuple(cluster_of(row.sample, row.parts[0]) for row in rows)
        for metric, score in {"exact": exact, "chrF": chrf}.items():
            beside = {name: score(answers, right) for name, answers in near.items()}
            chance = float(score(shuffled, right).mean())
            outcomes.append(Outcome(f"{metric} from {modality}", score(said, right), clusters, chance, beside))
    if not outcomes:
        raise Lacking(lacks(bench, source, most, "a text beside one of the modalities"))
    return Result(tuple(outcomes))


def _right(row: Pair) -> tuple[str, ...]:
    """What may be said about a part: of speech its transcript, else the sample's texts in the one language."""
    part, text = row.parts
    if part.kind == "speech" and part.text:
        return (part.text,)
    return tuple(other.text for other in row.sample.of("text") if other.text and other.lang == text.lang)


def _say(bench: Bench, rows: Sequence[Pair], unnamed: str, max_new: int) -> list[str]:
    """A caption of each part in the language of what is right, which is `unnamed` where it has none."""
    languages: dict[str, list[int]] = {}
    for i, (part, text) in enumerate(row.parts for row in rows):
        language = part.lang if part.kind == "speech" and part.text else text.lang
        languages.setdefault(language or unnamed, []).append(i)
    said = [""] * len(rows)
    for language, of_it in languages.items():
        decoded = [[part] for i in of_it if (part := bench.decoded(rows[i].parts[0])) is not None]
        for i, answer in zip(of_it, bench.model.generate_parts(decoded, language, max_new), strict=True):
            said[i] = answer
    return said
