"""Conversations from the labels and texts of the embedded sample: `python -m data_prep.conversations [--out FOLDER]`.

What is this, what is it called in another language, which of two is it, what do you hear, in which language is this
said, does the sound belong to the picture, which activity is this and for how long: several turns about the same
parts, which stand in the sample once. A question's `kind` is what it asks. Splits are the sample's own; each split but
training asks in words that no other split asks in. The same bytes every time.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common import CACHE, SAMPLE
from mmfusion.data.pack.write import check_out, draft_folder
from mmfusion.data.shards import MANIFEST, ShardSet
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import Part, Sample

# Of each kind the forms for training, then that of validation and that of the test.
FORMS: Mapping[str, tuple[str, ...]] = {
    "name": (
        "What is this?", "What do you see?", "Name this picture.", "What is in the picture?", "Say what this is.",
        "What does the picture show?", "Which thing is shown here?",
    ),
    "translation": (
        "What is this in {language}?", "Say it in {language}.", "What is this called in {language}?",
        "Name this picture in {language}.", "How do you say this in {language}?",
        "Tell me in {language} what this is.", "What is the {language} name of what you see?",
    ),
    "choice": (
        "Is this {one} or {other}?", "Which of two is it: {one} or {other}?", "{one} or {other}?",
        "What do you see, {one} or {other}?", "Choose: {one}, {other}.",
        "Does it show {one} or {other}?", "One of these is right, {one} or {other}. Which?",
    ),
    "sound": (
        "What do you hear?", "What is this sound?", "Name this sound.", "What makes this sound?",
        "Say what you hear.", "Which sound is played here?", "What kind of sound is this?",
    ),
    "language": (
        "In which language is this said?", "Which language is spoken?", "What language is this?",
        "Name the language that you hear.", "Which language does the speaker use?",
        "What language do you hear?", "Say which language is spoken here.",
    ),
    "belongs": (
        "Does the sound belong to the picture?", "Do sound and picture belong together?", "Do they match?",
        "Is this the sound of the picture?", "Do you hear what you see?",
        "Is what you hear what you see?", "Does what you hear fit the picture?",
    ),
    "activity": (
        "Which activity is this?", "What is the person doing?", "Which exercise is this?", "Name the activity.",
        "What movement is this?", "What is being done here?", "Say which exercise the person does.",
    ),
    "duration": (
        "For how long?", "How long does it last?", "How many seconds is this?", "How long is it done?",
        "What is its duration?", "How much time does it take?", "Over how many seconds is it done?",
    ),
}  # fmt: skip
SPLITS = ("train", "validation", "test")

LANGUAGES: Mapping[str, str] = {
    "ar": "Arabic", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "da": "Danish",
    "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hy": "Armenian", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "ko": "Korean", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "th": "Thai", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip

TRANSLATIONS = 2  # languages that one picture is asked about
WINDOWS_S = (2, 3, 4, 5, 6, 7, 8)  # lengths of movement that are asked about
WINDOWS = 6  # pieces of one recording, each of a length of its own


@dataclass(frozen=True)
class Question:
    """What is asked of the parts that are `shown`, and the right answer."""

    kind: str
    shown: tuple[Part, ...]
    asked: str
    answer: str


class Asker:
    """Words for questions, drawn for one conversation of one split."""

    def __init__(self, split: str, key: str) -> None:
        self.split, self.rng = split, random.Random(f"conversation {split} {key}")

    def question(self, kind: str, shown: Sequence[Part], answer: str, **words: str) -> Question:
        *training, validation, test = FORMS[kind]
        form = {"train": self.rng.choice(training), "validation": validation, "test": test}[self.split]
        return Question(kind, tuple(shown), form.format(**words), answer)

    def choice(self, shown: Sequence[Part], right: str, names: Sequence[str]) -> Question:
        """Between the right name and one of the others, in either order."""
        wrong = self.rng.choice([name for name in names if name != right])
        one, other = self.rng.sample([right, wrong], 2)
        return self.question("choice", shown, right, one=one, other=other)


def talk(sample: Sample, key: str, questions: Sequence[Question]) -> Sample:
    """A conversation of these turns; a part is shown where it is first asked about."""
    parts: list[Part] = []
    shown: list[Part] = []
    for question in questions:
        for part in question.shown:
            if not any(part is other for other in shown):
                shown.append(part)
                parts.append(_shown(part, len(shown)))
        parts.append(Part(type="text", role="user", kind=question.kind, text=question.asked))
        parts.append(Part(type="text", role="assistant", text=question.answer))
    return dataclasses.replace(sample, key=key, url="", parts=tuple(parts))


def _shown(part: Part, number: int) -> Part:
    """A part as the user shows it: without the words that it is asked about, under a name of its own."""
    file = f"{number}.{(part.file or '').rpartition('.')[2]}"
    return dataclasses.replace(part, role="user", file=file, text=None, lang=None)


def _english(sample: Sample) -> str | None:
    return next((part.text for part in sample.of("text") if part.lang == "en"), None)


def about_picture(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    """What it is, in English and in other languages, and which of two."""
    asker = Asker(split, sample.key)
    picture = sample.of("image")[:1]
    called = {part.lang or "": part.text or "" for part in sample.of("text") if part.lang in LANGUAGES}
    others = sorted(language for language in called if language != "en")
    questions = [
        asker.question("translation", picture, called[language], language=LANGUAGES[language])
        for language in asker.rng.sample(others, min(TRANSLATIONS, len(others)))
    ]
    if name := called.get("en"):
        questions += [asker.question("name", picture, name), asker.choice(picture, name, names)]
    asker.rng.shuffle(questions)
    if questions:
        yield talk(sample, sample.key, questions)


def about_clips(sample: Sample, others: Sequence[Sample], split: str) -> Iterator[Sample]:
    """Of each clip of a stamp: its language where it is speech, and whether it belongs to a picture, its own or not."""
    strangers = [other for other in others if other.labels["concept"] != sample.labels["concept"]]
    for number, clip in enumerate(sample.of("audio")):
        asker = Asker(split, f"{sample.key} {number}")
        belongs = asker.rng.random() < 0.5
        picture = (sample if belongs else asker.rng.choice(strangers)).of("image")[0]
        questions = [asker.question("belongs", (clip, picture), "yes" if belongs else "no")]
        if clip.kind == "speech" and (language := LANGUAGES.get(clip.lang or "")):
            questions.append(asker.question("language", (clip,), language))
        asker.rng.shuffle(questions)
        yield talk(sample, f"{sample.key}-clip{number}", questions)


def about_sound(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    asker = Asker(split, sample.key)
    sound, name = sample.of("audio")[:1], _english(sample)
    if name:
        questions = [asker.question("sound", sound, name), asker.choice(sound, name, names)]
        asker.rng.shuffle(questions)
        yield talk(sample, sample.key, questions)


def about_movement(sample: Sample, names: Sequence[str], split: str) -> Iterator[Sample]:
    """Pieces of the recording, of several lengths: what is done, for how long, and which of two."""
    name = _english(sample)
    (series,) = sample.of("sensor")
    for number in range(WINDOWS if name else 0):
        asker = Asker(split, f"{sample.key} {number}")
        seconds = asker.rng.choice(WINDOWS_S)
        piece = (_piece(series, seconds, asker.rng),)
        questions = [
            asker.question("activity", piece, name or ""),
            asker.question("duration", piece, f"{seconds} seconds"),
            asker.choice(piece, name or "", names),
        ]
        asker.rng.shuffle(questions)
        yield talk(sample, f"{sample.key}-{number}", questions)


def _piece(series: Part, seconds: int, rng: random.Random) -> Part:
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
    shards = ShardSet(root, split)
    of_source: dict[str, list[Sample]] = {}
    for i in range(len(shards)):
        sample = shards.read(i)
        of_source.setdefault(sample.source or "", []).append(sample)
    for _, samples in sorted(of_source.items()):
        names = sorted({name for sample in samples if (name := _english(sample))})
        for sample in samples:
            if sample.of("image"):
                yield from about_picture(sample, names, split)
                yield from about_clips(sample, samples, split)
            elif sample.of("audio"):
                yield from about_sound(sample, names, split)
            else:
                yield from about_movement(sample, names, split)


def build(out: Path, root: Path = SAMPLE) -> None:
    """Write a shard for each split and source, and the manifest, below `out`."""
    entries = []
    for split in SPLITS:
        of_source: dict[str, list[Sample]] = {}
        for sample in conversations(root, split):
            of_source.setdefault(sample.source or "", []).append(sample)
        for source, samples in of_source.items():
            entries.append(write_shard(out / f"{source}-{split}.tar", samples, split=split, root=out))
    write_manifest(out, entries, made_from(root))


def made_from(root: Path) -> str:
    """The digest of this script and of the shards below `root`."""
    return hashlib.sha256(Path(__file__).read_bytes() + (root / MANIFEST).read_bytes()).hexdigest()


def prepare(out: Path, root: Path = SAMPLE) -> None:
    """`build`, unless `out` holds what this script makes of the shards below `root`; whole, or not at all.

    Shards that were not made from others are somebody's own, and stay. Raises DataError where something else is there.
    """
    if (out / MANIFEST).is_file():
        found = json.loads((out / MANIFEST).read_bytes()).get("made_from")
        if found in (None, made_from(root)):
            return
    check_out(root, out, overwrite=True)
    print(f"{out}: making conversations about {root}", flush=True)
    with draft_folder(out) as draft:
        build(draft, root)


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversations about the embedded sample.")
    parser.add_argument("--root", type=Path, default=SAMPLE, help="the sample's folder")
    parser.add_argument("--out", type=Path, default=CACHE / "conversations", help="where the shards go")
    options = parser.parse_args()
    prepare(options.out, options.root)


if __name__ == "__main__":
    main()
