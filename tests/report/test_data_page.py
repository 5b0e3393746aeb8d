"""The page of samples: what is shown is what lies in the shard, and what cannot be used is shown with its reason."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile
from html_page import Page, assert_whole
from PIL import Image

from mmfusion.data.shards import ShardSet
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.report import data_page
from mmfusion.report.media import duration
from mmfusion.types import Answer, Part, Sample

HOSTILE = '<script>alert(1)</script>" onload="x'
RATE = 8000
WAVE = (0.5 * np.sin(np.arange(12 * RATE) / 5)).astype(np.float32)


def picture(width: int, height: int, **how: str) -> Part:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return Part(type="image", file="png", data=file.getvalue(), **how)  # pyright: ignore[reportArgumentType]


def clip(wave: np.ndarray, **how: str) -> Part:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV", subtype="PCM_16")
    return Part(type="audio", file="wav", data=file.getvalue(), **how)  # pyright: ignore[reportArgumentType]


def series(steps: int, channels: int, unit: str = "kPa") -> Part:
    file = io.BytesIO()
    np.save(file, np.cumsum(np.ones((steps, channels)), 0))
    names = tuple(f"p{i}" for i in range(channels))
    return Part(
        type="sensor",
        file="npy",
        data=file.getvalue(),
        rate_hz=1 / 3600,
        channels=names,
        units=(unit,) * channels,
        place="palm",
        subject="s07",
    )


def text(said: str, **how: str) -> Part:
    return Part(type="text", text=said, **how)  # pyright: ignore[reportArgumentType]


SAMPLES = (
    Sample(key="large", parts=(picture(2000, 1000), text("قلب أحمر", lang="ar")), source="a", licence="CC0-1.0"),
    Sample(key="long", parts=(clip(WAVE, kind="speech", lang="zh", text="你好", speaker="s1"),), source="a"),
    Sample(key="many", parts=(picture(8, 8), *(text(f"word {i}", lang="en") for i in range(30))), source="a"),
    Sample(key="palm", parts=(series(800, 16),), labels={HOSTILE: HOSTILE}, source=HOSTILE),
    Sample(key="talk", parts=(text("What?", role="user"), text("This " * 300, role="assistant")), source="b"),
    Sample(key="open", parts=(text("What is it?"),), source="b", check="a cat", answers=()),
    Sample(key="choice", parts=(text("Which?"),), source="b",
           answers=(Answer(parts=(text("One."),), score=1.0), Answer(parts=(clip(WAVE[:800]),), score=-0.5))),
    Sample(key="unit", parts=(series(9, 1, "furlong"),), source="b"),
    Sample(key="cut", parts=(Part(type="image", file="png", data=picture(99, 99).data[:90]),), source="b"),  # pyright: ignore[reportOptionalSubscript]
)  # fmt: skip


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, data_page.Card]:
    root = tmp_path_factory.mktemp("odd")
    write_manifest(root, [write_shard(root / "odd.tar", SAMPLES, split="train")])
    shards = ShardSet(root, "train")
    return {shards.key_of(i): data_page.card(shards, i) for i in range(len(shards))}


@pytest.fixture(scope="module")
def page(cards: dict[str, data_page.Card]) -> Page:
    return assert_whole(data_page.page(HOSTILE, {"Folder": HOSTILE}, list(cards.values())))


def test_texts_stand_in_their_language_and_direction(page: Page) -> None:
    assert {"lang": "ar", "dir": "auto"} in page.all("bdi")
    assert {"lang": "zh", "dir": "auto"} in page.all("bdi")
    assert {"lang": "", "dir": "auto"} in page.all("bdi")  # of no stated language, not of the page's
    assert "قلب أحمر" in page.text
    assert "This This" in page.text
    assert "… and 500 characters" in page.text
    assert HOSTILE in page.text


def test_a_large_picture_is_scaled_down(page: Page) -> None:
    sizes = []
    for attributes in page.all("img"):
        data = base64.b64decode(str(attributes["src"]).partition(",")[2])
        sizes.append(Image.open(io.BytesIO(data)).size)
    assert sizes == [(512, 256), (8, 8)]
    assert "2000 x 1000 px · shown smaller" in page.text


def test_the_first_ten_seconds_of_a_long_sound_play(page: Page) -> None:
    players = page.all("audio")
    assert all("controls" in player for player in players)
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(str(players[0]["src"]).partition(",")[2])))
    assert (rate, len(wave)) == (RATE, 10 * RATE)
    assert np.abs(wave - WAVE[: len(wave)]).max() < 1e-3
    assert "the first 10 s of 12 s · 8 kHz · speech · zh · speaker s1" in page.text


def test_a_long_series_is_cut_and_says_so(page: Page, cards: dict[str, data_page.Card]) -> None:
    notes = " · ".join(cards["palm"].blocks[0].notes)
    assert notes == "the first 20.8 days of 33.3 days, palm · 0.000278 Hz · subject s07 · the first 12 of 16 channels"
    assert "p11" in page.text
    assert "p12" not in page.text


def test_many_parts_of_a_kind_are_folded_away_and_a_conversation_is_not(cards: dict[str, data_page.Card]) -> None:
    many = cards["many"]
    assert [block.part.type for block in many.blocks] == ["image", "text", "text", "text", "text"]
    assert [block.text for block in many.folded] == [f"word {i}" for i in range(4, 30)]
    assert [block.part.role for block in cards["talk"].blocks] == ["user", "assistant"]


def test_a_preference_shows_prompt_answers_and_scores(page: Page, cards: dict[str, data_page.Card]) -> None:
    choice = cards["choice"]
    assert [block.text for block in choice.prompt] == ["Which?"]
    assert [(score, blocks[0].part.type) for score, blocks in choice.answers] == [(1.0, "text"), (-0.5, "audio")]
    assert "score -0.5" in page.text
    assert "Right to say: a cat" in page.text


def test_what_cannot_be_used_is_shown_with_its_reason(page: Page, cards: dict[str, data_page.Card]) -> None:
    assert str(cards["cut"].blocks[0].fault).startswith("corrupt picture")
    assert str(cards["unit"].blocks[0].fault).startswith("unknown unit: 'furlong'")
    assert "✗ image png cannot be used: corrupt picture" in page.text


def test_samples_stand_together_by_source_with_a_link_to_each(page: Page) -> None:
    assert [a["href"] for a in page.all("a")] == ["#main", "#source-1", "#source-2", "#source-3"]
    assert "licence: CC0-1.0" not in page.text  # the mark between them is the style's
    assert "CC0-1.0" in page.text


def test_durations_in_the_unit_in_which_they_are_read() -> None:
    assert [duration(s) for s in (0.25, 119, 120, 7200, 200_000)] == ["0.25 s", "119 s", "2 min", "2 h", "2.31 days"]
