"""Questions about the embedded sample without answers, but with a check: `python -m data_prep.checks [--out FOLDER]`.

What an answer can be held against word for word, each kind a source of its own: `name` (which of two is it, in the
language that is asked for; the other one is its name in another language, or another name in this one), `language`
(in which language is this said) and `activity`. A name that is not offered is not asked for: a small model never says
the right one, and a reward that never comes teaches nothing. Words and splits are those of `conversations`. The same
bytes every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep import conversations, derived
from data_prep.common import SAMPLE
from data_prep.conversations import LANGUAGES, Asker, Question, as_shown, called_in, names_by_language, stretch
from mmfusion.types import Part, Sample

PIECES = 4  # of one recording


def prompt(sample: Sample, kind: str, number: int, question: Question) -> Sample:
    """The question, open, with its answer as the check."""
    parts = [as_shown(part, i) for i, part in enumerate(question.shown, 1)]
    parts.append(Part(type="text", role="user", kind=kind, text=question.asked))
    return dataclasses.replace(
        sample,
        key=f"{sample.key}-{kind}-{number}",
        url="",
        parts=tuple(parts),
        answers=(),
        check=question.answer,
        source=kind,
    )


def about_picture(sample: Sample, names: Mapping[str, Sequence[str]], split: str) -> Iterator[Sample]:
    """Its name in a language, against that in another one and against another name in this one."""
    asker, called = Asker(split, f"checks {sample.key}"), called_in(sample)
    picture = sample.of("image")[:1]
    for number, asked in enumerate(asker.rng.sample(sorted(called), min(2, len(called)))):
        right = called[asked]
        others = [called[language] for language in sorted(called)] if number else names[asked]
        for choice in asker.choice(picture, right, others):
            whole = asker.question("translation", picture, right, language=LANGUAGES[asked])
            question = dataclasses.replace(whole, asked=f"{whole.asked} {choice.asked}")
            yield prompt(sample, "name", number, question)


def about_clips(sample: Sample, split: str) -> Iterator[Sample]:
    for number, clip in enumerate(sample.of("audio")):
        if clip.kind == "speech" and (language := LANGUAGES.get(clip.lang or "")):
            asker = Asker(split, f"checks {sample.key} {number}")
            yield prompt(sample, "language", number, asker.question("language", (clip,), language))


def about_movement(sample: Sample, split: str) -> Iterator[Sample]:
    (series,), name = sample.of("sensor"), conversations.english(sample)
    for number in range(PIECES if name else 0):
        asker = Asker(split, f"checks {sample.key} {number}")
        part = stretch(series, asker.rng.choice(conversations.WINDOWS_S), asker.rng)
        yield prompt(sample, "activity", number, asker.question("activity", (part,), name or ""))


def checks(root: Path, split: str) -> Iterator[Sample]:
    """All prompts about the samples of one split."""
    alone = derived.asked_alone(root, split)
    for samples in derived.by_source(derived.samples_of(root, split)).values():
        names = names_by_language(samples)
        for sample in samples:
            if sample.of("image"):
                if alone(sample):
                    yield from about_picture(sample, names, split)
                yield from about_clips(sample, split)
            elif sample.of("sensor"):
                yield from about_movement(sample, split)


def prepare(out: Path, root: Path = SAMPLE, only: str | None = None) -> None:
    """The prompts about the shards below `root`, in `out`."""
    derived.prepare(out, root, checks, [Path(__file__), Path(conversations.__file__)], only)


if __name__ == "__main__":
    derived.main("checks", prepare)
