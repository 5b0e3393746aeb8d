"""Counts against those made by hand, and what is said about a set that has it all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_media import (
    encoded,
    picture_sample,
    png,
    sound,
    spoken_sample,
    tar,
    tone,
    watch_sample,
    wrist,
    write_mixed,
    write_set,
)

from mmfusion.data.decode import decode_part, size_px
from mmfusion.data.pitfalls import pitfalls
from mmfusion.data.shards import ShardSet, entries_of
from mmfusion.data.stats import Stats, spread
from mmfusion.data.tokenizer import SentencePieceTokenizer, tokenizer_of
from mmfusion.types import Answer, Part, Sample, SkipSample


def counted(root: Path, tokenizer: SentencePieceTokenizer | None = None, decode: bool = False) -> Stats:
    entries = entries_of(root, "train")
    stats = Stats(tokenizer, decode)
    for split in dict.fromkeys(entry.split for entry in entries):
        shards = ShardSet(root, split, entries)
        for i in range(len(shards)):
            stats.add(shards, i)
    return stats


def test_a_set_counted_by_hand(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    numbers = counted(write_mixed(tmp_path, pictures=3, spoken=2, watch=4), tokenizer).numbers()
    total = numbers["total"]
    assert {name: total[name] for name in ("samples", "image", "audio", "sensor", "text")} == {
        "samples": 14, "image": 3 + 2 + 5, "audio": 4, "sensor": 4, "text": 6 + 2 + 4 + 10,
    }  # fmt: skip
    assert total["megapixels"] == pytest.approx(10 * 16 * 16 / 1e6)
    assert total["audio_hours"] == pytest.approx(2 * (0.3 + 0.2) / 3600, abs=1e-6)
    assert total["sensor_hours"] == pytest.approx(4 * 200 / 50 / 3600, abs=1e-6)
    assert [(row["split"], row["source"], row["samples"]) for row in numbers["table"]] == [
        ("train", "pictures", 3), ("train", "spoken", 2), ("train", "watch", 4), ("validation", "pictures", 5),
    ]  # fmt: skip
    assert numbers["combinations"] == {"image + text": 8, "sensor + text": 4, "image + audio + text": 2}
    assert numbers["languages"] == {"en": 14, "fr": 8}
    assert numbers["spoken_languages"] == {"de": 2}
    assert numbers["audio_rates"] == {"16,000 Hz": 4}
    assert numbers["channels"] == {"acc_x (g)": 4, "acc_y (g)": 4, "acc_z (g)": 4}
    assert numbers["labels"]["activity"]["commonest"] == {"rowing": 4}
    characters = numbers["sizes"]["text_characters"]
    assert (characters["min"], characters["max"]) == (len("goose 0"), len("rowing the boat"))
    assert numbers["sizes"]["text_pieces"]["n"] == 22


def test_parts_of_answers_count_and_conversations_are_told(tmp_path: Path) -> None:
    said = Part(type="text", lang="en", text="A goose.")
    clip = Part(type="audio", file="a.wav", data=sound(tone()))
    choice = Sample(
        key="c", parts=(said,), answers=(Answer(parts=(clip,), score=1.0), Answer(parts=(said,), score=0.0))
    )
    talk = Sample(key="t", parts=(dataclasses.replace(said, role="user"),))
    write_set(tmp_path, {"a.tar": ("train", [choice, talk])})
    numbers = counted(tmp_path).numbers()
    assert numbers["total"]["text"] == 3
    assert numbers["total"]["audio"] == 1
    assert numbers["kinds"] == {"preference": 1, "conversation": 1}


def test_unusable_samples_are_counted_by_reason_and_add_nothing_else(tmp_path: Path) -> None:
    good, cut = png(size=(40, 40)), png(size=(40, 40))[:-30]
    tar(tmp_path / "a.tar", [("good.png", good), ("cut.png", cut), ("none.png", b"GIF89a"), ("empty.txt", b" ")])
    by_header, by_pixel = counted(tmp_path), counted(tmp_path, decode=True)
    assert by_header.tables["skipped"] == {"corrupt picture": 1, "empty text": 1}
    assert by_pixel.tables["skipped"] == {"corrupt picture": 2, "empty text": 1}
    assert by_pixel.numbers()["total"]["image"] == 1
    assert by_pixel.numbers()["sizes"]["image_px"]["n"] == 1
    assert by_pixel.first["corrupt picture"] == "a.tar: cut"


def leaky(root: Path) -> Path:
    """A set with every fault that can be said of one."""
    lonely = dataclasses.replace(watch_sample(9), labels={"activity": "sitting"})
    wide = Sample(key="odd", parts=(wrist(units=("g", "g", "furlong")),))
    write_set(
        root,
        {
            "train.tar": ("train", [
                dataclasses.replace(watch_sample(0), parts=(wrist(subject="s01"),)),
                *(dataclasses.replace(spoken_sample(i), labels={"concept": "goose"}) for i in range(60)),
            ]),
            "test.tar": ("test", [
                spoken_sample(3), lonely, wide,
                Sample(key="same", parts=(Part(type="audio", file="wav", speaker="a", data=sound(tone(300))),)),
                Sample(key="s01", parts=(wrist(subject="s01", seed=5), Part(type="text", text="no language"))),
            ]),
        },
    )  # fmt: skip
    return root


def test_what_a_researcher_would_trip_over_is_said(tmp_path: Path) -> None:
    said = pitfalls(counted(leaky(tmp_path)))
    for expected in (
        "Samples that cannot be used: 1 of 66; a run stops above 1% of them.",
        "Keys in both train and test: 1 (first 's0003'); a run refuses such a set.",
        "Parts that are the same to the byte in train and test: 4 (first 's0003'); a leak unless meant.",
        "There is no validation split: no validation loss, nothing for early stopping to watch.",
        "Subjects in train and in another split: 1 of 1 (s01);"
        " what is measured there says nothing about a new subject.",
        "Texts that state no language: 1 of 63; no prompt will ask for one.",
        "Samples that state no licence: 2.",
    ):
        assert expected in said
    assert any("label 'activity' that stand in no other split: 1 of 1 in test" in sentence for sentence in said)
    assert any(sentence.startswith("Uneven labels: 'concept' (60 of 'goose', 1 of the rarest)") for sentence in said)
    assert any(sentence.startswith("All texts with a language are in 'en'") for sentence in said)


def test_nothing_is_said_of_a_set_without_fault(tmp_path: Path) -> None:
    goose = [dataclasses.replace(picture_sample(i), labels={"concept": "goose"}) for i in range(4)]
    write_set(tmp_path, {"t.tar": ("train", goose[:3]), "v.tar": ("validation", goose[3:])})
    assert pitfalls(counted(tmp_path)) == []


def test_texts_that_fit_no_row_are_said_with_the_key_that_makes_room(
    tmp_path: Path, tokenizer: SentencePieceTokenizer
) -> None:
    text = "goose " * 200
    samples = [dataclasses.replace(picture_sample(i), labels={"concept": "goose"}) for i in range(4)]
    samples[0] = dataclasses.replace(samples[0], parts=(Part(type="text", lang="en", text=text),))
    write_set(tmp_path, {"t.tar": ("train", samples[:3]), "v.tar": ("validation", samples[3:])})
    needed = 3 + len(tokenizer.encode("en")) + len(tokenizer.encode(text))
    (said,) = pitfalls(counted(tmp_path, tokenizer))
    assert said.startswith("Samples whose text may fit no row of 128 pieces: 1 of 4; a run skips them without")
    assert 0 <= int(said.rpartition("data.pipeline.row_length=")[2].rstrip(".")) - needed < 64


def test_a_series_that_stops_a_run_is_named(tmp_path: Path) -> None:
    listed = b'{"parts":[{"type":"sensor","file":"npy","rate_hz":50,"channels":["a"],"units":["g"]}]}'
    two_wide = wrist(2).data
    assert isinstance(two_wide, bytes)
    tar(tmp_path / "a.tar", [("w.json", listed), ("w.npy", two_wide)])
    assert "Samples that stop a run when they are read: 1 (first a.tar: w); write them anew." in pitfalls(
        counted(tmp_path)
    )


def test_a_spread_of_a_wide_range_has_bins_even_in_the_logarithm() -> None:
    one = spread(np.array([1.0, 10.0, 10.0, 1000.0]))
    assert (one["min"], one["median"], one["max"], one["n"]) == (1, 10, 1000, 4)
    edges = np.array(one["histogram"]["edges"])
    assert one["histogram"]["log"]
    assert np.allclose(edges[1:] / edges[:-1], 1000 ** (1 / 24))
    assert sum(one["histogram"]["counts"]) == 4
    same = spread(np.array([48.0, 48.0]))["histogram"]
    assert not same["log"]
    assert same["counts"][0] == 2


def test_the_size_from_the_header_is_that_of_the_pixels() -> None:
    for data in (
        png(size=(30, 20)),
        encoded(Image.new("RGB", (7, 9)), "JPEG"),
        encoded(Image.new("L", (5, 3)), "WEBP"),
    ):
        part = Part(type="image", file="png", data=data)
        pixels = decode_part(part).data
        assert isinstance(pixels, np.ndarray)
        assert size_px(part) == pixels.shape[1::-1]
    with pytest.raises(SkipSample, match="corrupt picture"):
        size_px(Part(type="image", file="png", data=b"not one"))


def test_the_tokenizer_is_found_beside_the_shards(tmp_path: Path, tokenizer_path: Path) -> None:
    assert tokenizer_of(tmp_path) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    assert tokenizer_of(tmp_path) is not None


def test_texts_alone_that_are_in_two_splits_are_a_leak(tmp_path: Path) -> None:
    def said(key: str, text: str) -> Sample:
        return Sample(key=key, parts=(Part(type="text", lang="en", text=text),))

    shards = {"a.tar": ("train", [said("a", "A goose.")]), "b.tar": ("test", [said("b", "a  goose."), said("c", "x")])}
    write_set(tmp_path, shards)
    assert "Samples of the same texts alone in train and test: 1 (first 'b'); a leak unless meant." in pitfalls(
        counted(tmp_path)
    )
