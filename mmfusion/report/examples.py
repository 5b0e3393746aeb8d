"""Held-out examples for the report: what was asked, retrieved and said; chosen by a hash, not by success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mmfusion.data.decode import decode_part
from mmfusion.data.series import array_of, cut, length_s
from mmfusion.evaluation.bench import Embedder, Retrieval, Said, by_hash
from mmfusion.evaluation.measure import Evaluation
from mmfusion.evaluation.wording import exact
from mmfusion.report.media import about_series, media, picture
from mmfusion.types import Part

SHOWN_S = 8.0  # of a series
RETRIEVED = 5
MAX_NEW = 24


@dataclass(frozen=True)
class Found:
    """A retrieved candidate: its name, its cosine, whether it is right, and its picture if candidates are pictures."""

    name: str
    score: float
    right: bool
    picture: str | None


@dataclass(frozen=True)
class Example:
    """One card of the report: `media` is the input as HTML, `heard` the transcript of a spoken one.

    `rank` is where the right name, `truth`, stood among `candidates`; `caption` what the decoder said in `lang`.
    """

    task: str
    key: str
    media: Markup
    truth: str
    heard: str | None
    lang: str
    found: tuple[Found, ...]
    rank: int
    candidates: int
    caption: str
    caption_right: bool


@dataclass(frozen=True)
class Answered:
    """A card of a question: `media` is what was shown, as HTML, `truth` the first answer that would have been right."""

    task: str
    key: str
    kind: str
    media: Markup
    asked: str
    truth: str
    said: str
    right: bool


def collect(model: Embedder, evaluation: Evaluation, each: int = 3) -> list[Example]:
    """`each` examples of every task that has a retrieval to show."""
    cards: list[Example] = []
    for task, result in evaluation.results.items():
        if result.retrieval is not None:
            cards += _of_task(model, task, result.retrieval, each)
    return cards


def answered(evaluation: Evaluation) -> list[Answered]:
    """Of every task that has answers to show one of each kind of question."""
    cards: list[Answered] = []
    for task, result in evaluation.results.items():
        first: dict[str, Said] = {}
        for said in sorted(result.said, key=lambda said: by_hash(said.key)):
            first.setdefault(said.kind, said)
        cards += [_card(task, first[kind]) for kind in dict.fromkeys(said.kind for said in result.said)]
    return cards


def _card(task: str, of: Said) -> Answered:
    shown = Markup("").join(_media(part, part) for part in map(_decoded, of.prompt) if part.type != "text")
    asked = " ".join(part.text or "" for part in of.prompt if part.type == "text")
    right = bool(exact([of.answer], [of.right])[0])
    return Answered(task, of.key, of.kind, shown, asked, of.right[0], of.answer, right)


def _of_task(model: Embedder, task: str, retrieval: Retrieval, each: int) -> list[Example]:
    order = sorted(range(len(retrieval.keys)), key=lambda i: by_hash(retrieval.keys[i]))
    chosen: list[int] = []
    for i in order:  # one of each cluster first: three clips of one stamp would show one stamp
        if len(chosen) < each and retrieval.clusters[i] not in {retrieval.clusters[j] for j in chosen}:
            chosen.append(i)
    ranks = retrieval.ranks()
    cards = []
    for i in chosen:
        part = _decoded(retrieval.queries[i])
        lang = (part.lang if part.kind == "speech" else None) or "en"
        shown = cut(part, 0.0, SHOWN_S) if part.type == "sensor" and length_s(part) > SHOWN_S else part
        said = model.generate_parts([[shown]], lang, MAX_NEW)[0]
        right = [name for name, hit in zip(retrieval.candidates, retrieval.right[i], strict=True) if hit]
        heard = part.text if part.kind == "speech" else None
        best = np.argsort(-retrieval.scores[i], kind="stable")[:RETRIEVED]
        cards.append(
            Example(
                task=task,
                key=retrieval.keys[i],
                media=_media(shown, part),
                truth=right[0],
                heard=heard,
                lang=lang,
                found=tuple(_found(retrieval, i, int(c)) for c in best),
                rank=int(ranks[i]),
                candidates=len(retrieval.candidates),
                caption=said,
                caption_right=bool(exact([said], [[heard] if heard else right])[0]),
            )
        )
    return cards


def _found(retrieval: Retrieval, query: int, candidate: int) -> Found:
    shown = picture(array_of(_decoded(retrieval.pictures[candidate]))) if retrieval.pictures else None
    score, right = float(retrieval.scores[query, candidate]), bool(retrieval.right[query, candidate])
    return Found(retrieval.candidates[candidate], score, right, shown)


def _media(shown: Part, whole: Part) -> Markup:
    """The input as HTML; `shown` is the stretch of a series that is drawn."""
    if shown.type != "sensor":
        says = (
            "the picture asked about" if shown.type == "image" else "spoken name" if shown.kind == "speech" else "sound"
        )
        return media(shown, says)
    note = about_series(whole)
    if shown is not whole:
        note = f"the first {SHOWN_S:.0f} s of {note}; the names below are for all of it"
    return media(shown, "") + Markup('<p class="note">{}</p>').format(note)


def _decoded(part: Part) -> Part:
    """A task that holds many parts holds them as bytes."""
    return decode_part(part) if isinstance(part.data, bytes) else part


def share_right(cards: Sequence[Example]) -> tuple[int, int]:
    """How many of the cards have a right first name, and a right caption."""
    return sum(card.rank == 1 for card in cards), sum(card.caption_right for card in cards)
