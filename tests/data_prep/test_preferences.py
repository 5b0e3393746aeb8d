"""Pairs of answers about the embedded sample: what is right, what is wrong, and why."""

from __future__ import annotations

from collections import Counter

import pytest

from data_prep.common import SAMPLE
from data_prep.conversations import CATEGORIES, FORMS, KINDS_OF_THINGS, LANGUAGES
from data_prep.derived import SPLITS
from data_prep.preferences import WRONG, preferences
from mmfusion.data.shards import ShardSet
from mmfusion.types import Sample


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Sample]]:
    return {split: list(preferences(SAMPLE, split)) for split in SPLITS}


@pytest.fixture(scope="module")
def names() -> dict[str, tuple[str, str]]:
    """By English name, category and subcategory of the emoji of one vendor."""
    shards = ShardSet(SAMPLE, "test")
    found = {}
    for sample in map(shards.read, range(len(shards))):
        if sample.source == "emoji-twitter":
            (name,) = [part.text for part in sample.of("text") if part.lang == "en"]
            found[name] = (sample.labels["category"], sample.labels["subcategory"])
    return found


def said(sample: Sample) -> tuple[str, str]:
    """The chosen answer and the rejected one."""
    assert sample.answers is not None
    chosen, rejected = sorted(sample.answers, key=lambda answer: -answer.score)
    return chosen.parts[0].text or "", rejected.parts[0].text or ""


def test_every_kind_is_there_in_the_questions_words(pairs: dict[str, list[Sample]]) -> None:
    kinds = {split: Counter(sample.source for sample in of) for split, of in pairs.items()}
    wrong = {f"wrong-{what}" for what in ("language", "choice", "match", "category", "sound", "activity", "duration")}
    assert set(kinds["train"]) == {"near-name", "grounded", "spoken-language", *wrong}
    assert set(kinds["test"]) == {*kinds["train"], "unseen-name"}
    assert kinds["test"].pop("wrong-sound") > 30  # there are no more sounds
    assert min(kinds["test"].values()) > 100
    asked = {split: {s.parts[-1].text for s in of if s.source == "near-name"} for split, of in pairs.items()}
    assert asked["train"] == set(FORMS["name"][:-2])
    assert asked["test"] == {FORMS["name"][-1]}


def test_the_wrong_answer_is_wrong_in_the_way_that_is_said(
    pairs: dict[str, list[Sample]], names: dict[str, tuple[str, str]]
) -> None:
    for sample in pairs["test"]:
        chosen, rejected = said(sample)
        assert chosen != rejected
        if sample.source in ("near-name", "unseen-name") and chosen in names:
            assert names[chosen][1] == names[rejected][1]
            assert (sample.labels["seen"] == "yes") == (sample.source == "near-name")
        elif sample.source == "grounded" and chosen in names:
            assert names[chosen][0] != names[rejected][0]
        elif sample.source == "spoken-language":
            assert {chosen, rejected} <= set(LANGUAGES.values())
        elif sample.source == "wrong-choice":
            assert chosen in (asked := sample.parts[-1].text or "")
            assert rejected in asked
        elif sample.source == "wrong-match":
            assert {chosen, rejected} == {"yes", "no"}
        elif sample.source == "wrong-category":
            assert chosen == CATEGORIES[sample.labels["category"]]
            assert rejected in KINDS_OF_THINGS
        elif sample.source == "wrong-activity":
            assert chosen.casefold().replace(" ", "-") == sample.labels["activity"]
            assert rejected.casefold().replace(" ", "-") != sample.labels["activity"]


def test_another_language_is_another_name_of_the_same(pairs: dict[str, list[Sample]]) -> None:
    shards = ShardSet(SAMPLE, "test")
    texts = {s.key: {p.lang: p.text for p in s.of("text")} for s in map(shards.read, range(len(shards)))}
    checked = 0
    for sample in (sample for sample in pairs["test"] if sample.source == "wrong-language"):
        called = texts[sample.key.removesuffix("-wrong-language-0")]
        (asked,) = [code for code, language in LANGUAGES.items() if language in (sample.parts[-1].text or "")]
        chosen, rejected = said(sample)
        assert called[asked] == chosen
        assert rejected in called.values()
        checked += 1
    assert checked > 1000


def test_in_training_a_picture_is_named_against_several_of_its_like(pairs: dict[str, list[Sample]]) -> None:
    """Each wrong answer once, and none of them right; elsewhere there is one."""
    for sample in pairs["train"]:
        assert sample.answers is not None
        (right,) = [answer.parts[0].text for answer in sample.answers if answer.score == 1]
        wrong = [answer.parts[0].text for answer in sample.answers if answer.score == 0]
        assert 1 <= len(wrong) <= WRONG
        assert len({right, *wrong}) == 1 + len(wrong)
    counted = Counter(len(sample.answers or ()) for sample in pairs["train"] if sample.source == "near-name")
    assert counted.most_common(1)[0][0] == 1 + WRONG
    assert {len(sample.answers or ()) for split in ("validation", "test") for sample in pairs[split]} == {2}
