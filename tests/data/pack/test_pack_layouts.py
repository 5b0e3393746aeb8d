"""Small trees in exactly the published layouts become the samples and splits that users of them expect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_media import png, sound, tar, tone
from tiny_sources import clip, coco, colour, esc50, everything, flickr30k, packed, put, speech_commands, uci_har

from mmfusion.data.decode import decode_part
from mmfusion.data.pack.layouts import recognise
from mmfusion.data.pack.pack import pack
from mmfusion.data.shards import verify
from mmfusion.types import DataError


def keys_of(out: Path) -> dict[str, int]:
    return {split: len(samples) for split, samples in packed(out).items()}


def test_coco_val_is_the_test_split_and_validation_comes_out_of_train(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(coco(tmp_path / "coco"), out)
    verify(out)
    by_split = packed(out)
    assert {sample.key for sample in by_split["test"]} == {f"val2017_{500 + i:012d}" for i in range(4)}
    assert len(by_split["train"]) + len(by_split["validation"]) == 12
    assert by_split["validation"]
    sample = everything(out)["val2017_000000000501"]
    assert [part.type for part in sample.parts] == ["image"] + ["text"] * 5
    assert [part.text for part in sample.of("text")] == [f"A goose number 501, {k}." for k in range(5)]
    assert {part.lang for part in sample.of("text")} == {"en"}


def test_coco_without_the_pictures_of_train_is_its_val_alone(tmp_path: Path) -> None:
    source = coco(tmp_path / "coco")
    (source / "train2017").rename(tmp_path / "elsewhere")
    pack(source, tmp_path / "out")
    assert keys_of(tmp_path / "out") == {"test": 4}


def test_esc50_is_split_by_fold_and_recordings_stay_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(esc50(tmp_path / "ESC-50-master"), out)
    assert keys_of(out) == {"train": 18, "validation": 6, "test": 6}
    by_split = packed(out)
    assert {sample.labels["fold"] for sample in by_split["test"]} == {"5"}
    sample = everything(out)["1-112-A-12"]
    assert sample.labels["concept"] == "crackling-fire"
    assert sample.of("text")[0].text == "crackling fire"
    assert (sample.of("audio")[0].kind, sample.source) == ("sound", "ESC-50-master")


def test_speech_commands_follows_the_published_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    pack(speech_commands(tmp_path / "speech"), out)
    assert keys_of(out) == {"train": 6, "validation": 3, "test": 3}
    assert {sample.labels["speaker"] for sample in packed(out)["test"]} == {"bb05582b"}
    (clip,) = everything(out)["up_0a7c2a8d_nohash_0"].of("audio")
    assert (clip.kind, clip.lang, clip.text, clip.speaker) == ("speech", "en", "up", "0a7c2a8d")
    assert "1 files of _background_noise_" in capsys.readouterr().out


def test_uci_har_keeps_its_split_and_makes_validation_by_subject(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(uci_har(tmp_path / "UCI HAR Dataset"), out)
    by_split = packed(out)
    subjects = {split: {sample.labels["subject"] for sample in samples} for split, samples in by_split.items()}
    assert subjects["test"] == {"2", "4"}
    assert subjects["train"] | subjects["validation"] == {"1", "3", "5"}
    assert not subjects["train"] & subjects["validation"]
    sample = everything(out)["train-00004"]
    (part,) = sample.parts[:1]
    assert (part.rate_hz, part.place, part.units[3]) == (50.0, "waist", "rad/s")
    values = decode_part(part).data
    assert isinstance(values, np.ndarray)
    assert values.shape == (128, 9)
    np.testing.assert_allclose(values[17], np.arange(9) + 0.003, rtol=1e-6)  # window 3 from 0; channel c holds c
    assert sample.labels["activity"] == "walking-upstairs"
    assert sample.of("text")[0].text == "walking upstairs"


def test_flickr30k_has_five_captions_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(flickr30k(tmp_path / "flickr"), out)
    samples = everything(out)
    assert sorted(samples) == [str(1000 + i) for i in range(6)]
    assert [part.text for part in samples["1003"].of("text")][4] == "A goose , number 3 , said 4 ."
    assert set(keys_of(out)) == {"train", "validation", "test"}


def test_flickr8k_captions_txt_may_quote_its_commas(tmp_path: Path) -> None:
    root = tmp_path / "flickr"
    put(root / "captions.txt", 'image,caption\n1.jpg,A goose .\n1.jpg,"A goose , wet ."\n')
    put(root / "Images" / "1.jpg", png(form="JPEG"))
    pack(root, tmp_path / "out")
    assert [part.text for part in everything(tmp_path / "out")["1"].of("text")] == ["A goose .", "A goose , wet ."]


def test_folders_by_class_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "zoo", tmp_path / "out"
    for i in range(8):
        put(root / "tabby_cat" / f"{i}.PNG", colour(i))
        put(root / "собака" / "deeper" / f"{i}.wav", clip(i))
    put(root / "tabby_cat" / "Thumbs.db", b"?")
    put(root / ".git" / "x.png", colour(99))
    pack(root, out)
    samples = everything(out)
    assert len(samples) == 16
    assert samples["собака_deeper_3"].labels == {"label": "собака", "concept": "собака"}
    assert samples["tabby_cat_3"].of("text")[0].text == "tabby cat"
    assert samples["tabby_cat_3"].of("image")[0].file == "png"
    for split, of in packed(out).items():
        assert {sample.labels["label"] for sample in of} == {"tabby_cat", "собака"}, split
    assert "1 .db" in capsys.readouterr().out


def test_folders_below_splits_keep_them(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    for s, (split, n) in enumerate({"train": 4, "Val": 2, "test": 1}.items()):
        for i in range(n):
            put(root / split / "cats" / f"{i}.png", colour(50 * s + i))
    put(root / "__MACOSX" / "train" / "._0.png", "?")
    pack(root, tmp_path / "out")
    assert keys_of(tmp_path / "out") == {"train": 4, "validation": 2, "test": 1}
    assert set(everything(tmp_path / "out")) >= {"train_cats_0", "Val_cats_0", "test_cats_0"}


def test_a_folder_beside_splits_is_named_and_makes_no_class_of_them(tmp_path: Path) -> None:
    for name in ("train/cats", "test/cats", "extra"):
        put(tmp_path / "zoo" / name / "0.png", colour(len(name)))
    with pytest.raises(DataError, match=r"zoo: extra beside the splits test, train; move"):
        pack(tmp_path / "zoo", tmp_path / "out")
    put(tmp_path / "exams" / "test" / "0.png", colour(1))  # a class that is called so
    put(tmp_path / "exams" / "oral" / "0.png", colour(2))
    pack(tmp_path / "exams", tmp_path / "exams-out")
    assert {sample.labels["label"] for sample in everything(tmp_path / "exams-out").values()} == {"test", "oral"}


def test_img2dataset_tars_are_packed_anew_with_splits(tmp_path: Path) -> None:
    root = tmp_path / "laion"
    root.mkdir()
    for t in range(2):
        members = []
        for i in range(10):
            key = f"{t:05d}{i:04d}"
            members += [(f"{key}.jpg", png((9 * i, t, 0), form="JPEG")), (f"{key}.txt", f"goose {i}".encode())]
            members += [(f"{key}.json", b'{"status": "success", "url": "x"}')]
        tar(root / f"{t:05d}.tar", members)
        put(root / f"{t:05d}_stats.json", "{}")
    pack(root, tmp_path / "out")
    counts = keys_of(tmp_path / "out")
    assert set(counts) == {"train", "validation", "test"}
    assert sum(counts.values()) == 20
    text = everything(tmp_path / "out")["000010003"].of("text")[0]
    assert (text.text, text.lang) == ("goose 3", "en")


@pytest.mark.parametrize(
    ("name", "make"),
    [("coco", coco), ("esc50", esc50), ("speech-commands", speech_commands), ("uci-har", uci_har)],
)
def test_published_layouts_are_recognised(name: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert recognise(make(tmp_path / "x"))[0] == name


def test_an_unknown_layout_is_told_what_each_needs(tmp_path: Path) -> None:
    put(tmp_path / "notes" / "a.txt", "hello")
    with pytest.raises(DataError, match=r"no layout that is known.*meta/esc50\.csv.*cats/\*\.jpg"):
        recognise(tmp_path)


def test_same_source_same_bytes(tmp_path: Path) -> None:
    source = esc50(tmp_path / "esc")
    for out in ("a", "b"):
        pack(source, tmp_path / out, shard_mb=0.02)
    files = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*") if p.is_file()}
    assert Counter(path.suffix for path in files)[".tar"] > 3  # of at most 20 kB of media each


def test_a_long_sound_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "zoo"
    for i in range(12):
        put(root / "cats" / f"{i}.wav", clip(i))
    put(root / "cats" / "long.wav", sound(tone(100, 601, 1000), rate=1000))
    pack(root, tmp_path / "out")
    assert len(everything(tmp_path / "out")) == 12
    assert "sound too long" in capsys.readouterr().err
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[1].startswith('13,cats_long,cats/long.wav,"sound too')
