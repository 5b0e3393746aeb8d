"""Which parts a visit uses."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mmfusion.data.select import Select
from mmfusion.types import Part, Sample

STAMP = Sample(
    key="k",
    parts=(
        Part(type="image", file="png"),
        Part(type="text", lang="en", text="goose"),
        Part(type="audio", file="fr.ogg", kind="speech", lang="fr", text="une oie"),
        Part(type="audio", file="de.ogg", kind="speech", lang="de", text="eine Gans"),
        Part(type="audio", file="call.ogg", kind="sound"),
        Part(type="text", lang="fr", text="une oie"),
        Part(type="text", lang="de", text="eine Gans"),
        Part(type="text", lang="ru", text="гусь"),
    ),
)


def test_one_clip_and_one_text_in_reading_order() -> None:
    select = Select()
    for seed in range(50):
        parts = select(STAMP, seed).parts
        assert [p.type for p in parts] in (["image", "text", "audio"], ["image", "audio", "text"])
        assert parts == tuple(p for p in STAMP.parts if p in parts)
    assert select(STAMP, 3) == select(STAMP, 3)


def test_shares_of_languages_and_clips() -> None:
    chosen = [Select(english=0.7)(STAMP, seed) for seed in range(4000)]
    texts = Counter(s.of("text")[0].lang for s in chosen)
    clips = Counter(s.of("audio")[0].file for s in chosen)
    np.testing.assert_allclose([texts[n] / 4000 for n in ("en", "fr", "de", "ru")], [0.7, 0.1, 0.1, 0.1], atol=0.025)
    np.testing.assert_allclose([n / 4000 for n in clips.values()], 1 / 3, atol=0.025)


def test_english_alone_always_or_never() -> None:
    english = Sample(key="k", parts=STAMP.parts[:2])
    assert Select(english=0.0)(english, 0) == english
    others = Sample(key="k", parts=STAMP.parts[5:])
    assert {Select(english=1.0)(others, s).of("text")[0].lang for s in range(30)} == {"fr", "de", "ru"}
    assert {Select(english=1.0)(STAMP, s).of("text")[0].lang for s in range(30)} == {"en"}


def test_more_than_one_clip() -> None:
    chosen = Select(audio=2)(STAMP, 0)
    assert len(chosen.of("audio")) == 2
    assert len(Select(audio=9)(STAMP, 0).of("audio")) == 3


def test_texts_without_a_language_count_as_others() -> None:
    plain = Sample(key="k", parts=(Part(type="text", text="a goose"), Part(type="text", text="a bird")))
    assert {Select(english=1.0)(plain, s).parts[0].text for s in range(20)} == {"a goose", "a bird"}


def test_a_conversation_stays_whole() -> None:
    shown = [Part(type="image", role="user"), Part(type="image", role="user"), Part(type="text", role="user", text="?")]
    talk = Sample(key="a", parts=(*shown, Part(type="text", role="assistant", text="both")))
    assert all(Select()(talk, seed) == talk for seed in range(9))
