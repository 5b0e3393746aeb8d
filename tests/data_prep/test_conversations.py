"""Conversations about the embedded sample: their turns, and what is held out."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.common import SAMPLE
from data_prep.conversations import CATEGORIES, FORMS, KINDS_OF_THINGS, LANGUAGES, conversations
from data_prep.derived import SPLITS
from mmfusion.data.decode import decode_sample
from mmfusion.data.series import array_of
from mmfusion.data.shards import ShardSet
from mmfusion.types import Sample


@pytest.fixture(scope="module")
def talks() -> dict[str, list[Sample]]:
    return {split: list(conversations(SAMPLE, split)) for split in SPLITS}


def asked(sample: Sample) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of each turn."""
    texts = sample.of("text")
    assert [part.role for part in texts] == ["user", "assistant"] * (len(texts) // 2)
    return [(q.kind or "", q.text or "", a.text or "") for q, a in zip(texts[::2], texts[1::2], strict=True)]


def test_every_kind_is_asked_in_every_split_in_words_of_its_own(talks: dict[str, list[Sample]]) -> None:
    """A form with its gaps filled differs from sample to sample; without gaps it is met as it is."""
    plain = {kind: forms for kind, forms in FORMS.items() if "{" not in "".join(forms)}
    met: dict[str, dict[str, set[str]]] = {split: {} for split in SPLITS}
    for split, samples in talks.items():
        turns = [turn for sample in samples for turn in asked(sample)]
        assert {kind for kind, _, _ in turns} == set(FORMS)
        for kind, question, _ in turns:
            met[split].setdefault(kind, set()).add(question)
    for kind, forms in plain.items():
        assert met["train"][kind] == set(forms[:-2])
        assert met["validation"][kind] == {forms[-2]}
        assert met["test"][kind] == {forms[-1]}
    for kind, forms in FORMS.items():
        assert len(set(forms)) == len(forms) == 12, kind


def test_the_answers_are_the_samples_own(talks: dict[str, list[Sample]]) -> None:
    originals = {}
    for split in SPLITS:
        shards = ShardSet(SAMPLE, split)
        originals |= {split + one.key: one for one in map(shards.read, range(len(shards)))}
    right = Counter[str]()
    for split, samples in talks.items():
        for sample in samples:
            original = originals.get(split + sample.key)
            if original is None:
                continue
            texts = {part.lang: part.text for part in original.of("text")}
            for kind, question, answer in asked(sample):
                if kind == "translation":
                    (language,) = [code for code, name in LANGUAGES.items() if name in question]
                    assert texts[language] == answer
                elif kind == "choice":
                    assert answer in (*texts.values(), *KINDS_OF_THINGS)
                    assert answer in question
                elif kind in ("name", "sound"):
                    assert texts["en"] == answer
                elif kind == "category":
                    assert answer == CATEGORIES[original.labels["category"]]
                right[kind] += 1
    assert min(right[kind] for kind in ("name", "category", "choice", "sound", "translation")) > 100


def test_movements_last_as_long_as_is_said(talks: dict[str, list[Sample]]) -> None:
    for sample in talks["validation"]:
        for kind, _, answer in asked(sample):
            if kind == "duration":
                (series,) = decode_sample(sample).of("sensor")
                assert series.rate_hz
                assert f"{len(array_of(series)) / series.rate_hz:.0f} seconds" == answer


def test_no_picture_is_asked_about_alone_in_two_splits(talks: dict[str, list[Sample]]) -> None:
    """Tux Paint's stamps are held out by voice: some pictures of the test are training's, and are heard with a clip."""
    alone = {
        split: {repr(one.of("image")[0].data) for one in of if one.of("image") and not one.of("audio")}
        for split, of in talks.items()
    }
    assert len(alone["test"]) > 1000
    assert not alone["train"] & (alone["validation"] | alone["test"])


def test_half_of_the_pictures_belong_to_the_sound(talks: dict[str, list[Sample]]) -> None:
    answers = Counter(answer for sample in talks["train"] for kind, _, answer in asked(sample) if kind == "belongs")
    assert set(answers) == {"yes", "no"}
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_part_stands_once_and_keeps_no_words(talks: dict[str, list[Sample]]) -> None:
    for sample in talks["train"]:
        shown = [part for part in sample.parts if part.type != "text"]
        assert len({part.data for part in shown if isinstance(part.data, bytes)}) == len(shown)
        assert all((part.role, part.text, part.lang) == ("user", None, None) for part in shown)
    assert max(len(asked(sample)) for sample in talks["train"]) == 7
