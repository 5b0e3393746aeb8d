"""Answers about the embedded sample, of which one is right: `python -m data_prep.preferences [--out FOLDER]`.

Beside the right answer stands a wrong one, in training several, from each of which it is to be told apart. Each kind is
a source of its own, so that logs and results tell them apart: `near-name` (the right name against those of its like),
`unseen-name` (the same, of concepts that no training shows), `grounded` (against things of other categories that are
not in the picture), `wrong-language` (against the same name in other languages than was asked for), `wrong-choice`
(against the other one of two that were named), `wrong-match` (yes against no), `wrong-category`, `spoken-language`,
`wrong-sound`, `wrong-activity`, `wrong-duration` (against others). Questions are those of `conversations`, in each
split in words of its own. The same bytes every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep import conversations, derived
from data_prep.common import SAMPLE
from data_prep.conversations import (
    CATEGORIES,
    KINDS_OF_THINGS,
    LANGUAGES,
    Asker,
    Question,
    as_shown,
    called_in,
    english,
    matches,
    names_by_language,
    stretch,
)
from mmfusion.types import Answer, Part, Sample

PIECES = 4  # of one recording
WRONG = 6  # answers to a question, at most, in training
LANGUAGES_ASKED = 3  # for one picture in training, each in words of its own


def against(sample: Sample, kind: str, number: int, question: Question, wrong: Sequence[str]) -> Sample:
    """A preference for the question's answer over wrong ones."""
    prompt = [as_shown(part, i) for i, part in enumerate(question.shown, 1)]
    prompt.append(Part(type="text", role="user", kind=question.kind, text=question.asked))
    answers = tuple(
        Answer(parts=(Part(type="text", role="assistant", text=text),), score=score)
        for text, score in ((question.answer, 1.0), *((text, 0.0) for text in wrong))
    )
    return dataclasses.replace(
        sample, key=f"{sample.key}-{kind}-{number}", url="", parts=tuple(prompt), answers=answers, source=kind
    )


def besides(asker: Asker, names: Iterable[str], right: str) -> list[str]:
    """Of the names that are not the right one WRONG in training, elsewhere one; fewer where there are not so many."""
    wrong = [name for name in names if name != right]
    if asker.split != "train":
        return [asker.rng.choice(wrong)] if wrong else []
    return asker.rng.sample(wrong, min(WRONG, len(wrong)))


class Names:
    """What the samples of one source are called, each name once: in each language, in English all and by a label."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.of = names_by_language(samples)
        self.all = self.of.get("en", [])
        self._alike: dict[tuple[str, str | None], list[str]] = {}
        for label in ("category", "subcategory"):
            for value in {sample.labels.get(label) for sample in samples}:
                alike = names_by_language([sample for sample in samples if sample.labels.get(label) == value])
                self._alike[label, value] = alike.get("en", [])

    def alike(self, sample: Sample, label: str) -> list[str]:
        """Of the samples that have the same label."""
        return self._alike[label, sample.labels.get(label)]


def about_picture(sample: Sample, names: Names, split: str) -> Iterator[Sample]:
    """Its name against those of its like, or of something else altogether; its name in other languages."""
    asker = Asker(split, f"pairs {sample.key}")
    picture, called = sample.of("image")[:1], called_in(sample)
    if name := called.get("en"):
        seen = split == "train" or sample.labels.get("seen") == "yes"
        if wrong := besides(asker, names.alike(sample, "subcategory"), name):
            question = asker.question("name", picture, name)
            yield against(sample, "near-name" if seen else "unseen-name", 0, question, wrong)
        own = set(names.alike(sample, "category"))
        if seen and (wrong := besides(asker, [other for other in names.all if other not in own], name)):
            yield against(sample, "grounded", 0, asker.question("name", picture, name), wrong)
    if category := CATEGORIES.get(sample.labels.get("category", "")):
        question = asker.question("category", picture, category)
        wrong = besides(asker, KINDS_OF_THINGS, category)
        if split == "train" and name and name != category:  # else it is the names that are learnt, whatever is asked
            wrong[0] = name
        yield against(sample, "wrong-category", 0, question, wrong)
        yield from between(sample, 0, asker.choice(picture, category, KINDS_OF_THINGS))
    languages = sorted(called)
    if languages:
        language = asker.rng.choice(languages)
        yield from between(sample, 1, asker.choice(picture, called[language], names.of[language]))
    times, most = (LANGUAGES_ASKED, 1 + WRONG) if split == "train" else (1, 2)
    for number in range(times if languages else 0):
        asked, *rest = asker.rng.sample(languages, min(len(languages), most))
        if wrong := sorted({called[language] for language in rest} - {called[asked]}):
            question = asker.question("translation", picture, called[asked], language=LANGUAGES[asked])
            yield against(sample, "wrong-language", number, question, wrong)


def between(sample: Sample, number: int, choices: Sequence[Question]) -> Iterator[Sample]:
    """The right one of two against the other one that the question names."""
    for question in choices:
        yield against(sample, "wrong-choice", number, question, [question.wrong])


def about_clips(sample: Sample, others: Sequence[Sample], spoken: Sequence[str], split: str) -> Iterator[Sample]:
    """Whether a clip belongs to a picture; the language of speech, of every second clip beside that picture."""
    for number, (clip, match) in enumerate(zip(sample.of("audio"), matches(sample, others, split), strict=True)):
        yield against(sample, "wrong-match", number, match, ["no" if match.answer == "yes" else "yes"])
        language = LANGUAGES.get(clip.lang or "")
        if clip.kind == "speech" and language:
            asker = Asker(split, f"pairs {sample.key} {number}")
            shown = match.shown if number % 2 else (clip,)
            if wrong := besides(asker, [LANGUAGES[code] for code in spoken], language):
                yield against(sample, "spoken-language", number, asker.question("language", shown, language), wrong)


def about_sound(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    asker, sound, name = Asker(split, f"pairs {sample.key}"), sample.of("audio")[:1], english(sample)
    if name and (wrong := besides(asker, names, name)):
        yield against(sample, "wrong-sound", 0, asker.question("sound", sound, name), wrong)
        yield from between(sample, 0, asker.choice(sound, name, names))


def about_movement(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    (series,), name = sample.of("sensor"), english(sample) or ""
    for number in range(PIECES):
        asker = Asker(split, f"pairs {sample.key} {number}")
        seconds = asker.rng.choice(conversations.WINDOWS_S)
        part = stretch(series, seconds, asker.rng)
        if wrong := besides(asker, names, name):
            yield against(sample, "wrong-activity", number, asker.question("activity", (part,), name), wrong)
        yield from between(sample, number, asker.choice((part,), name, names))
        wrong = besides(asker, [f"{other} seconds" for other in conversations.WINDOWS_S], f"{seconds} seconds")
        question = asker.question("duration", (part,), f"{seconds} seconds")
        yield against(sample, "wrong-duration", number, question, wrong)


def preferences(root: Path, split: str) -> Iterator[Sample]:
    """All pairs about the samples of one split."""
    alone = derived.asked_alone(root, split)
    for samples in derived.by_source(derived.samples_of(root, split)).values():
        names = Names(samples)
        spoken = sorted({c.lang for s in samples for c in s.of("audio") if c.lang in LANGUAGES and c.lang})
        for sample in samples:
            if sample.of("image"):
                if alone(sample):
                    yield from about_picture(sample, names, split)
                yield from about_clips(sample, samples, spoken, split)
            elif sample.of("audio"):
                yield from about_sound(sample, names.all, split)
            else:
                yield from about_movement(sample, names.all, split)


def prepare(out: Path, root: Path = SAMPLE, only: str | None = None) -> None:
    """The pairs about the shards below `root`, in `out`."""
    derived.prepare(out, root, preferences, [Path(__file__), Path(conversations.__file__)], only)


if __name__ == "__main__":
    derived.main("preferences", prepare)
