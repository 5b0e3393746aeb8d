"""Conversations from the labels and texts of the embedded sample: `python -m data_prep.conversations [--out FOLDER]`.

What is this, what kind of thing, what is it called in another language, which of two is it, what do you hear, in which
language is this said, does the sound belong to the picture, which activity is this and for how long: several turns
about the same parts, which stand in the sample once. A question's `kind` is what it asks. Splits are the sample's own;
each split but training asks in words that no other split asks in. The same bytes every time.
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep import derived
from data_prep.common import SAMPLE
from mmfusion.types import Part, Sample

# Of each kind the forms for training, then that of validation and that of the test: other sentences of much the same
# words, since a model that has read nothing but names and questions knows no others.
FORMS: Mapping[str, tuple[str, ...]] = {
    "name": (
        "What is this?", "What do you see?", "Name this picture.", "What is in the picture?", "Say what this is.",
        "What is that called?", "Tell me what you see.", "What can be seen?", "Give the name of this.", "This is what?",
        "What does the picture show?", "Which thing is shown here?",
    ),
    "category": (
        "What kind of thing is this?", "Which group does it belong to?", "What sort of picture is this?",
        "Name the kind of thing.", "To which category does it belong?", "Which category is right for the picture?",
        "Say what kind of thing you see.", "Under which heading would you put it?", "What group is it from?",
        "Sort this picture: which group?",
        "Which category is this?", "What kind of thing does the picture show?",
    ),
    "translation": (
        "What is this in {language}?", "Say it in {language}.", "What is this called in {language}?",
        "Name this picture in {language}.", "How do you say this in {language}?", "And in {language}?",
        "Its name in {language}, please.", "{language}, please: what is it?", "In {language}, what do you see?",
        "Give the {language} word for it.",
        "Tell me in {language} what this is.", "What is the {language} name of what you see?",
    ),
    "choice": (
        "Is this {one} or {other}?", "Which of two is it: {one} or {other}?", "{one} or {other}?",
        "What is it, {one} or {other}?", "Choose: {one}, {other}.", "{one}, {other}: which of them is right?",
        "It may be {one} or {other}. What do you say?", "Would you say {one} or {other}?",
        "Which is better, {one} or {other}?", "Either {one} or {other}: which?",
        "Is it {one} or rather {other}?", "One of these is right, {one} or {other}. Which?",
    ),
    "sound": (
        "What do you hear?", "What is this sound?", "Name this sound.", "What makes this sound?",
        "What can be heard?", "Tell me what you hear.", "Give the name of the sound.", "This sound is what?",
        "Listen: what is it?", "What sort of sound is it?",
        "Say what you hear.", "Which sound is played here?",
    ),
    "language": (
        "In which language is this said?", "Which language is spoken?", "What language is this?",
        "Name the language that you hear.", "Which language does the speaker use?", "What is the language?",
        "In what language does the voice speak?", "Tell me the language.", "This is said in which language?",
        "Do you know this language?",
        "What language do you hear?", "Say which language is spoken here.",
    ),
    "belongs": (
        "Does the sound belong to the picture?", "Do sound and picture belong together?", "Do they match?",
        "Is this the sound of the picture?", "Do you hear what you see?", "Are sound and picture of one thing?",
        "Does the picture go with the sound?", "Sound and picture: a match?", "Are they about the same thing?",
        "Is the picture right for the sound?",
        "Is what you hear what you see?", "Does what you hear fit the picture?",
    ),
    "activity": (
        "Which activity is this?", "What is the person doing?", "Which exercise is this?", "Name the activity.",
        "What movement is this?", "Tell me the exercise.", "What does the person do?", "Give the name of the exercise.",
        "This is which exercise?", "What is the activity?",
        "What is being done here?", "Say which exercise the person does.",
    ),
    "duration": (
        "For how long?", "How long does it last?", "How many seconds is this?", "How long is it done?",
        "What is its duration?", "Tell me how long it lasts.", "How many seconds does it go on?",
        "For how many seconds?", "Give the length in seconds.", "How long is this?",
        "How many seconds does it last?", "For how long is it done?",
    ),
}  # fmt: skip

# What the sample's categories of pictures are called; those of few pictures are not asked about.
CATEGORIES: Mapping[str, str] = {
    "people-body": "people", "objects": "objects", "flags": "flags", "symbols": "symbols",
    "travel-places": "travel and places", "smileys-emotion": "faces", "animals-nature": "animals and nature",
    "food-drink": "food and drink", "activities": "activities", "animals": "animals and nature",
    "household": "objects", "food": "food and drink",
}  # fmt: skip
KINDS_OF_THINGS = sorted(set(CATEGORIES.values()))

LANGUAGES: Mapping[str, str] = {
    "ar": "Arabic", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "da": "Danish",
    "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hy": "Armenian", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "ko": "Korean", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "th": "Thai", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip

TRANSLATIONS = 3  # languages that one picture is asked about
WINDOWS_S = (2, 3, 4, 5, 6, 7, 8)  # lengths of movement that are asked about
WINDOWS = 6  # pieces of one recording, each of a length of its own


@dataclass(frozen=True)
class Question:
    """What is asked of the parts that are `shown`, and the right answer; of a choice the `wrong` one too."""

    kind: str
    shown: tuple[Part, ...]
    asked: str
    answer: str
    wrong: str = ""


class Asker:
    """Words for questions, drawn for one conversation of one split."""

    def __init__(self, split: str, key: str) -> None:
        self.split, self.rng = split, random.Random(f"conversation {split} {key}")

    def question(self, kind: str, shown: Sequence[Part], answer: str, **words: str) -> Question:
        *training, validation, test = FORMS[kind]
        form = {"train": self.rng.choice(training), "validation": validation, "test": test}[self.split]
        return Question(kind, tuple(shown), form.format(**words), answer)

    def choice(self, shown: Sequence[Part], right: str, names: Sequence[str]) -> list[Question]:
        """Between the right name and one of the others, in either order; nothing where there is no other."""
        wrong = self.other(names, right)
        if wrong is None:
            return []
        one, other = self.rng.sample([right, wrong], 2)
        return [dataclasses.replace(self.question("choice", shown, right, one=one, other=other), wrong=wrong)]

    def other(self, names: Sequence[str], right: str) -> str | None:
        """One of the names that is not the right one."""
        wrong = [name for name in names if name != right]
        return self.rng.choice(wrong) if wrong else None


def talk(sample: Sample, key: str, questions: Sequence[Question]) -> Sample:
    """A conversation of these turns; a part is shown where it is first asked about."""
    parts: list[Part] = []
    shown: list[Part] = []
    for question in questions:
        for part in question.shown:
            if not any(part is other for other in shown):
                shown.append(part)
                parts.append(as_shown(part, len(shown)))
        parts.append(Part(type="text", role="user", kind=question.kind, text=question.asked))
        parts.append(Part(type="text", role="assistant", text=question.answer))
    return dataclasses.replace(sample, key=key, url="", parts=tuple(parts))


def as_shown(part: Part, number: int) -> Part:
    """A part as the user shows it: without the words that it is asked about, under a name of its own."""
    file = f"{number}.{(part.file or '').rpartition('.')[2]}"
    return dataclasses.replace(part, role="user", file=file, text=None, lang=None)


def english(sample: Sample) -> str | None:
    return next((part.text for part in sample.of("text") if part.lang == "en"), None)


def names_by_language(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """What the samples are called, by language, each name once."""
    found: dict[str, set[str]] = {}
    for sample in samples:
        for language, name in called_in(sample).items():
            found.setdefault(language, set()).add(name)
    return {language: sorted(names) for language, names in found.items()}


def called_in(sample: Sample) -> dict[str, str]:
    """Its name by language, of LANGUAGES alone."""
    return {part.lang or "": part.text or "" for part in sample.of("text") if part.lang in LANGUAGES}


def about_picture(sample: Sample, names: Mapping[str, Sequence[str]], split: str) -> Iterator[Sample]:
    """What it is, what kind of thing, in English and in another language, and which of two: every second time of two
    names not in English, so that both have to be read."""
    asker = Asker(split, sample.key)
    picture, called = sample.of("image")[:1], called_in(sample)
    others = sorted(language for language in called if language != "en")
    questions = [
        asker.question("translation", picture, called[language], language=LANGUAGES[language])
        for language in asker.rng.sample(others, min(TRANSLATIONS, len(others)))
    ]
    if name := called.get("en"):
        questions.append(asker.question("name", picture, name))
        known = [language for language in others if len(names[language]) > 1]
        language = asker.rng.choice(known) if known and asker.rng.random() < 0.5 else "en"
        questions += asker.choice(picture, called[language], names[language])
    if category := CATEGORIES.get(sample.labels.get("category", "")):
        questions.append(asker.question("category", picture, category))
        questions += asker.choice(picture, category, KINDS_OF_THINGS)
    asker.rng.shuffle(questions)
    if questions:
        yield talk(sample, sample.key, questions)


def matches(sample: Sample, others: Sequence[Sample], split: str) -> Iterator[Question]:
    """Of each clip of a stamp, whether it belongs to a picture, its own or another's."""
    strangers = [other for other in others if other.labels["concept"] != sample.labels["concept"]]
    for number, clip in enumerate(sample.of("audio")):
        asker = Asker(split, f"match {sample.key} {number}")
        belongs = not strangers or asker.rng.random() < 0.5
        picture = (sample if belongs else asker.rng.choice(strangers)).of("image")[0]
        yield asker.question("belongs", (clip, picture), "yes" if belongs else "no")


def about_clips(sample: Sample, others: Sequence[Sample], split: str) -> Iterator[Sample]:
    """Of each clip of a stamp: its language where it is speech, and whether it belongs to a picture."""
    for number, (clip, match) in enumerate(zip(sample.of("audio"), matches(sample, others, split), strict=True)):
        asker = Asker(split, f"{sample.key} {number}")
        questions = [match]
        if clip.kind == "speech" and (language := LANGUAGES.get(clip.lang or "")):
            questions.append(asker.question("language", (clip,), language))
        asker.rng.shuffle(questions)
        yield talk(sample, f"{sample.key}-clip{number}", questions)


def about_sound(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    asker = Asker(split, sample.key)
    sound, name = sample.of("audio")[:1], english(sample)
    if name:
        questions = [asker.question("sound", sound, name), *asker.choice(sound, name, names)]
        asker.rng.shuffle(questions)
        yield talk(sample, sample.key, questions)


def about_movement(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    """Pieces of the recording, of several lengths: what is done, for how long, and which of two."""
    name = english(sample)
    (series,) = sample.of("sensor")
    for number in range(WINDOWS if name else 0):
        asker = Asker(split, f"{sample.key} {number}")
        seconds = asker.rng.choice(WINDOWS_S)
        piece = (stretch(series, seconds, asker.rng),)
        questions = [
            asker.question("activity", piece, name or ""),
            asker.question("duration", piece, f"{seconds} seconds"),
            *asker.choice(piece, name or "", names),
        ]
        asker.rng.shuffle(questions)
        yield talk(sample, f"{sample.key}-{number}", questions)


def stretch(series: Part, seconds: int, rng: random.Random) -> Part:
    assert isinstance(series.data, bytes)
    assert series.rate_hz
    values = np.load(io.BytesIO(series.data), allow_pickle=False)
    length = round(seconds * series.rate_hz)
    first = rng.randrange(max(1, len(values) - length))
    out = io.BytesIO()
    np.save(out, values[first : first + length], allow_pickle=False)
    return dataclasses.replace(series, data=out.getvalue())


def conversations(root: Path, split: str) -> Iterator[Sample]:
    """All that is asked about the samples of one split."""
    alone = derived.asked_alone(root, split)
    for samples in derived.by_source(derived.samples_of(root, split)).values():
        names = names_by_language(samples)
        for sample in samples:
            if sample.of("image"):
                if alone(sample):
                    yield from about_picture(sample, names, split)
                yield from about_clips(sample, samples, split)
            elif sample.of("audio"):
                yield from about_sound(sample, names["en"], split)
            else:
                yield from about_movement(sample, names["en"], split)


def prepare(out: Path, root: Path = SAMPLE, only: str | None = None) -> None:
    """The conversations about the shards below `root`, in `out`."""
    derived.prepare(out, root, conversations, [Path(__file__)], only)


if __name__ == "__main__":
    derived.main("conversations", prepare)
