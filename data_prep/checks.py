"""Questions about the embedded sample without answers, but with a check: `python -m data_prep.checks [--out FOLDER]`.

What an answer can be held against word for word: those questions of `conversations`, each on its own, that ask what it
is called in a language (`translation`), what kind of thing it is (`category`), which language is spoken (`language`)
and what is done (`activity`). Each of these is a source. Splits and words are those of the conversations. The same
bytes every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from data_prep import conversations, derived
from data_prep.common import SAMPLE
from mmfusion.evaluation import questions
from mmfusion.types import Sample

KINDS = ("translation", "category", "language", "activity")


def opened(talk: Sample) -> Iterator[Sample]:
    """Each question of a conversation, without its answer."""
    for asked in questions.questions(talk):
        key, check = f"{talk.key}-{asked.kind}-{asked.number}", "\n".join(asked.right)
        yield dataclasses.replace(talk, key=key, parts=asked.prompt, answers=(), check=check, source=asked.kind)


def checks(root: Path, split: str) -> Iterator[Sample]:
    """All prompts about the samples of one split."""
    for talk in conversations.conversations(root, split):
        yield from (sample for sample in opened(talk) if sample.source in KINDS)


def prepare(out: Path, root: Path = SAMPLE, only: str | None = None) -> None:
    """The prompts about the shards below `root`, in `out`."""
    scripts = [Path(__file__), Path(conversations.__file__), Path(questions.__file__)]
    derived.prepare(out, root, checks, scripts, only)


if __name__ == "__main__":
    derived.main("checks", prepare)
