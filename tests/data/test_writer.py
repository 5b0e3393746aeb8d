"""Writing shards: the same bytes each time, whole or not at all, and readable by webdataset itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_media import picture_sample, png, sound, spoken_sample, tone, watch_sample, write_set
from webdataset.compat import WebDataset

from mmfusion.data.index import ShardIndex
from mmfusion.data.shards import ShardEntry, read_manifest, verify
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import Answer, DataError, Part, Sample

SAMPLES = [picture_sample(0), spoken_sample(1), watch_sample(2)]


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.tar", SAMPLES, split="train")
    second = write_shard(tmp_path / "b.tar", SAMPLES, split="train")
    assert first.sha256 == second.sha256
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_entry_says_what_is_inside(tmp_path: Path) -> None:
    entry = write_shard(tmp_path / "deep" / "a.tar", SAMPLES, split="validation", root=tmp_path)
    assert entry == ShardEntry(
        file="deep/a.tar",
        split="validation",
        samples=3,
        bytes=(tmp_path / "deep" / "a.tar").stat().st_size,
        sha256=entry.sha256,
        modalities={"audio": 2, "image": 2, "sensor": 1, "text": 4},
        hours=round((0.3 + 0.2 + 4.0) / 3600, 4),
        languages={"de": 1, "en": 3, "fr": 1},
        sources={"pictures": 1, "spoken": 1, "watch": 1},
        licences={"CC0-1.0": 3},
    )
    write_manifest(tmp_path, [entry])
    assert read_manifest(tmp_path) == [entry]
    verify(tmp_path)


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES, split="train")
    raw = list(WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in raw] == ["p0000", "s0001", "w0002"]
    assert raw[1]["de.wav"] == SAMPLES[1].parts[1].data
    assert json.loads(raw[1]["json"])["labels"] == {"concept": "goose-1"}


def test_a_preference_and_names_in_any_script(tmp_path: Path) -> None:
    answer = Answer(parts=(Part(type="audio", file="b.wav", data=sound(tone())),), score=0.0)
    prompt = (Part(type="image", file="png", data=png()), Part(type="text", text="何ですか", lang="ja"))
    sample = Sample(key="がちょう", parts=prompt, answers=(answer,), labels={"concept": "goose"})
    write_shard(tmp_path / "a.tar", [sample], split="train")
    read = ShardIndex(tmp_path / "a.tar").read(0)
    assert dataclasses.replace(read, url="") == sample
    assert read.answers
    assert read.answers[0].parts[0].data == answer.parts[0].data


def key(name: str) -> Sample:
    return dataclasses.replace(picture_sample(0), key=name)


def file(name: str, data: bytes = b"1") -> Sample:
    return Sample(key="k", parts=(Part(type="image", file=name, data=data),))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([key("v1.5_0001")], r"key 'v1.5_0001': a key has no dot"),
        ([key("")], "no dot"),
        ([key("a/")], "no dot"),
        ([key("/a")], "no dot"),
        ([key("__meta__")], "no dot"),
        ([key("a"), key("b"), key("a")], "key 'a' is there twice"),
        ([key("a"), key("A")], "key 'A' is there twice"),
        ([key("Straße"), key("STRASSE")], "there twice"),
        ([file("PNG")], "lower case"),
        ([file("pkl")], "no code"),
        ([file("json")], "would be skipped"),
        ([Sample(key="k", parts=(Part(type="image", file="png"),))], "stored as encoded bytes, not as NoneType"),
        ([dataclasses.replace(file("png"), parts=file("png").parts + file("png", b"2").parts)], "different bytes"),
        ([Sample(key="k", parts=(Part(type="text", text=""),))], "empty text"),
        (
            [Sample(key="k", parts=(Part(type="image", file="png", data=b"", start_s=float("nan")),))],
            "cannot be written",
        ),
        ([Sample(key="k")], "no parts"),
        ([], "no sample to write"),
    ],
)
def test_what_could_not_be_read_back_is_refused(samples: list[Sample], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "a.tar", samples, split="train")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", SAMPLES, split="train")
    before = (tmp_path / "a.tar").read_bytes()

    def failing() -> Iterator[Sample]:
        yield picture_sample(0)
        raise RuntimeError("the source ended")

    with pytest.raises(RuntimeError, match="the source ended"):
        write_shard(tmp_path / "a.tar", failing(), split="train")
    assert (tmp_path / "a.tar").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_manifest_lists_only_what_is_there(tmp_path: Path) -> None:
    entries = write_set(tmp_path, {"a.tar": ("train", SAMPLES)})
    with pytest.raises(DataError, match=r"'b.tar' is not there"):
        write_manifest(tmp_path, [dataclasses.replace(entries[0], file="b.tar")])
    assert read_manifest(tmp_path) == entries
