"""The sample on disk: what is written reads back equal, and what is not as it must be costs the sample by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_media import png, sound, tone

from mmfusion.data.format import dump_sample, parse_sample, sample_from_members
from mmfusion.types import Answer, Part, Sample, SkipSample

word = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff\ufffd"), min_size=1, max_size=8).filter(
    lambda text: not text.isspace() and _real(text)
)
name = st.text("abcxyz09_", min_size=1, max_size=6)
number = st.floats(-1e12, 1e12)


def _real(text: str) -> bool:
    try:
        return text.isascii() or not text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return True


texts = st.builds(Part, type=st.just("text"), text=word, lang=st.none() | name, role=st.sampled_from([None, "user"]))
media = st.builds(
    Part,
    type=st.sampled_from(["image", "audio", "video"]),
    file=name.filter(lambda n: n != "json"),
    kind=st.none() | name,
    start_s=number,
    rate_hz=st.none() | st.floats(1, 1e6),
    speaker=st.none() | word,
)


@st.composite
def series(draw: st.DrawFn) -> Part:
    channels = tuple(draw(st.lists(name, min_size=1, max_size=4, unique=True)))
    cells = st.tuples(number, number)
    timed = draw(st.booleans())
    return Part(
        type="sensor",
        file="a.npy",
        rate_hz=None if timed else draw(st.floats(0.01, 1e4)),
        times="a.times.npy" if timed else None,
        place=draw(st.none() | word),
        subject=draw(st.none() | word),
        channels=channels,
        units=tuple(draw(st.sampled_from(["g", "kPa"])) for _ in channels),
        grid=tuple(draw(cells) for _ in channels) if draw(st.booleans()) else (),
    )


parts = st.lists(texts | media | series(), min_size=1, max_size=4).map(tuple)
common = {"labels": st.dictionaries(name, word, max_size=3), "source": st.none() | word, "licence": st.none() | word}
answers = st.lists(st.builds(Answer, parts=parts, score=number), max_size=3).map(tuple)
samples = (
    st.builds(Sample, key=name, parts=parts, **common)
    | st.builds(Sample, key=name, parts=parts, answers=answers, **common)
    | st.builds(Sample, key=name, parts=parts, answers=st.just(()), check=word, **common)
)


@given(samples)
@settings(max_examples=80, deadline=None)
def test_what_is_written_reads_back_equal(sample: Sample) -> None:
    once = dump_sample(sample)
    assert parse_sample(sample.key, once) == sample
    assert dump_sample(parse_sample(sample.key, once)) == once


def test_the_designs_own_example() -> None:
    listed = """{"parts": [
        {"type": "image", "file": "png"},
        {"type": "text", "lang": "en", "text": "bar-headed goose"},
        {"type": "audio", "file": "fr.ogg", "kind": "speech", "lang": "fr", "text": "une oie à tête barrée",
         "speaker": "fr-1"},
        {"type": "sensor", "file": "wrist.npy", "rate_hz": 50.0, "start_s": 0.0, "place": "right wrist",
         "subject": "s07", "channels": ["acc_x", "acc_y"], "units": ["m/s^2", "m/s^2"]},
        {"type": "sensor", "file": "palm.npy", "times": "palm.times.npy", "place": "palm", "channels": ["p0", "p1"],
         "units": ["kPa", "kPa"], "grid": [[0, 0], [0, 1]]}],
        "labels": {"concept": "bar-headed-goose"}, "source": "tuxpaint", "licence": "GPL-2.0"}""".encode()
    sample = parse_sample("000017", listed)
    assert [part.type for part in sample.parts] == ["image", "text", "audio", "sensor", "sensor"]
    assert sample.parts[4].grid == ((0.0, 0.0), (0.0, 1.0))
    assert b"start_s" not in dump_sample(sample)
    assert (
        dump_sample(sample).decode().startswith('{"parts":[{"type":"image","file":"png"},{"type":"text","text":"bar-')
    )


def part(**fields: Any) -> bytes:
    return json.dumps({"parts": [{"type": "text", "text": "a", **fields}]}).encode()


@pytest.mark.parametrize(
    ("listed", "reason", "where"),
    [
        (b'{"parts": [{"type": "text", "text": NaN}]}', "bad json", "NaN"),
        (
            b'{"parts": [{"type": "text", "text": "a", "start_s": 1e999}]}',
            "bad json",
            "parts[0].start_s must be a number between ±1e+12",
        ),
        (b'{"parts": [{"type": "text", "text": "a", "text": "b"}]}', "bad json", "repeats the key 'text'"),
        (b"[" * 10_000 + b"]" * 10_000, "bad json", "deep"),
        (b'{"parts": ' + b"[" * 40 + b"]" * 40 + b"}", "bad json", "parts[0] must be an object"),
        (b'{"parts": [{"type": "text", "text": "caf\xe9"}]}', "text not utf-8", "byte 40"),
        (b'{"parts": [{"type": "text", "text": "\\ud83d"}]}', "text not utf-8", "surrogate"),
        (b"\xef\xbb\xbf{}", "bad json", "no JSON"),
        (b'{"parts": [', "bad json", "no JSON"),
        (b"[]", "bad json", "must be an object"),
        (b'{"parts": []}', "no parts", "parts is empty"),
        (b'{"parts": [], "prompt": []}', "bad json", "either"),
        (part(colour="red"), "bad json", "unknown field 'colour'"),
        (part(lang=5), "bad json", "parts[0].lang must be a non-empty string, not 5"),
        (part(start_s=True), "bad json", "parts[0].start_s must be a number"),
        (part(start_s=1e13), "bad json", "parts[0].start_s must be a number between ±1e+12"),
        (part(rate_hz=0), "bad json", "parts[0].rate_hz must be between 1e-09 and 1e+09 Hz"),
        (part(role="narrator"), "bad json", "parts[0].role must be one of user, assistant"),
        (part(type="smell"), "bad json", "parts[0].type must be one of image"),
        (part(file="txt"), "bad json", "no `file`"),
        (part(channels=["a", 3]), "bad json", "parts[0].channels[1] must be"),
        (part(text=""), "empty text", "parts[0].text"),
        (part(text=" \u3000\n"), "empty text", "parts[0].text"),
        (part(text="\ufeffgoose"), "text with BOM", "parts[0].text"),
        (part(text="goo\0se"), "text with NUL", "parts[0].text"),
        (part(text="x" * 10_000_000), "text too long", "10000000 characters"),
        (part(text="une tÃªte barrÃ©e"), "mojibake", "parts[0].text"),
        (part(text="t\ufffdte"), "mojibake", "parts[0].text"),
        (b'{"parts": [{"type": "image", "file": "../x.png"}]}', "bad json", "parts[0].file"),
        (b'{"parts": [{"type": "image"}]}', "bad json", "needs `file`"),
        (
            b'{"parts": [{"type": "sensor", "file": "npy", "channels": ["a"], "units": ["g"]}]}',
            "bad json",
            "rate_hz or",
        ),
        (
            b'{"parts": [{"type": "sensor", "file": "npy", "rate_hz": 5, "channels": ["a"], "units": []}]}',
            "bad json",
            "0 units for 1 channels",
        ),
        (b'{"parts": [{"type": "text", "text": "a"}], "labels": {"concept": 3}}', "bad json", "labels.concept"),
        (b'{"prompt": [{"type": "text", "text": "a"}], "answers": [{"parts": []}]}', "bad json", "answers[0]"),
    ],
)
def test_a_fault_costs_the_sample_and_names_shard_key_and_field(listed: bytes, reason: str, where: str) -> None:
    with pytest.raises(SkipSample) as caught:
        parse_sample("k7", listed, "a/b.tar")
    assert caught.value.reason == reason
    assert where in str(caught.value)
    assert "a/b.tar" in str(caught.value)
    assert "'k7'" in str(caught.value)


@pytest.mark.parametrize("text", ["é", "naïve café", "Ünïcödé", "über", "Â", "¿qué?", "smørrebrød", "ÇA", "猫", "🦢"])
def test_real_text_in_latin_script_is_no_mojibake(text: str) -> None:
    assert parse_sample("k", part(text=text)).parts[0].text == text


def test_members_become_data_whatever_their_case() -> None:
    listed = b'{"parts": [{"type": "image", "file": "PNG"}, {"type": "text", "text": "goose"}]}'
    sample = sample_from_members("k", {"json": listed, "png": b"bytes"})
    assert sample.parts[0].data == b"bytes"
    with pytest.raises(SkipSample, match=r"parts\[0\].file names 'PNG', which is not there") as caught:
        sample_from_members("k", {"json": listed})
    assert caught.value.reason == "missing member"


def test_a_plain_tar_is_read_as_it_is() -> None:
    members = {"jpg": png(form="JPEG"), "txt": "une tête".encode(), "json": b'{"url": "http://x", "similarity": 0.3}'}
    sample = sample_from_members("000001", members, "x.tar")
    assert [(p.type, p.text) for p in sample.parts] == [("image", None), ("text", "une tête")]
    heard = sample_from_members("000002", {"flac": sound(tone(), "FLAC"), "txt": b"a tone"})
    assert [p.type for p in heard.parts] == ["audio", "text"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"png": b"", "txt": b"caf\xe9"}, "text not utf-8"),
        ({"png": b"", "txt": b""}, "empty text"),
        ({"cls": b"3"}, "no parts"),
        ({"png": b"", "json": b"{"}, "bad json"),
    ],
)
def test_faults_of_plain_tars(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(SkipSample) as caught:
        sample_from_members("k", members, "x.tar")
    assert caught.value.reason == reason
