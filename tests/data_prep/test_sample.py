"""The embedded sample as it is committed: its size, its splits, what it must not hold, and that others can read it."""

from __future__ import annotations

import hashlib
import io
import struct
import unicodedata
from collections import Counter, defaultdict
from functools import cache

import pytest
import soundfile
from PIL import Image
from webdataset.compat import WebDataset

from data_prep import cldr
from data_prep.build import sizes
from data_prep.common import LEFT_OUT_LANGUAGES, SAMPLE, fold
from data_prep.sounds import RATE_HZ, SERIAL
from mmfusion.data.index import ShardIndex
from mmfusion.data.shards import ShardSet, read_manifest, verify
from mmfusion.data.tokenizer import RESERVED, SentencePieceTokenizer
from mmfusion.types import Part, Sample

SPLITS = ("train", "validation", "test")
DUTCH = ("nl", "nld", "dut")


@cache
def samples(split: str) -> tuple[Sample, ...]:
    shards = ShardSet(SAMPLE, split)
    return tuple(shards.read(i) for i in range(len(shards)))


def of(split: str, *sources: str) -> list[Sample]:
    return [sample for sample in samples(split) if sample.source in sources]


def everything() -> list[Sample]:
    return [sample for split in SPLITS for sample in samples(split)]


def content(part: Part) -> bytes:
    assert isinstance(part.data, bytes)
    return part.data


def clips(split: str, source: str) -> list[tuple[Sample, Part]]:
    return [(sample, part) for sample in of(split, source) for part in sample.of("audio")]


def labels(split: str, source: str, name: str) -> set[str]:
    return {sample.labels[name] for sample in of(split, source)}


# --------------------------------------------------------------------------------------------- size, counts, licences


def test_is_whole_and_as_the_manifest_says() -> None:
    verify(SAMPLE)
    files = {path.relative_to(SAMPLE).as_posix() for path in SAMPLE.rglob("*.tar")}
    assert files == {entry.file for entry in read_manifest(SAMPLE)}


def test_keeps_within_its_budget() -> None:
    on_disk, deflated = sizes(SAMPLE)
    assert on_disk <= 26e6
    assert deflated <= 12e6


def test_counts() -> None:
    assert len(of("test", "emoji-twitter")) == 1911
    assert not of("train", "emoji-twitter") + of("validation", "emoji-twitter")
    train, validation = len(of("train", "emoji-google")), len(of("validation", "emoji-google"))
    assert 0.84 * 1911 < train < 0.88 * 1911
    assert 0.03 * 1911 < validation < 0.06 * 1911
    assert not of("test", "emoji-google")
    assert len({sample.labels["stamp"] for sample in everything() if sample.source == "tux-stamps"}) >= 100
    assert sum(len(of(split, "sonic-pi")) for split in SPLITS) == 162
    assert sum(len(of(split, "seglearn")) for split in SPLITS) == 140


def test_every_sample_says_source_licence_and_concept() -> None:
    for sample in everything():
        assert sample.source, sample.key
        assert sample.licence, sample.key
        assert {"concept", "category"} <= set(sample.labels), sample.key


def test_every_folder_has_its_licence_text_and_gpl_stands_alone() -> None:
    for entry in read_manifest(SAMPLE):
        folder = (SAMPLE / entry.file).parent
        text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
        assert len(text) > 1000
        assert ("GPL-2.0" in entry.licences) == (folder.name == "tux-stamps")
        assert ("GNU GENERAL PUBLIC LICENSE" in text) == (folder.name == "tux-stamps")
    assert (SAMPLE / "tokenizer" / "LICENSE.txt").is_file()


def test_keys_are_unique_over_all_splits() -> None:
    keys = Counter(sample.key.casefold() for sample in everything())
    assert [key for key, count in keys.items() if count > 1] == []


# ------------------------------------------------------------------------------------------------------------- splits


def test_training_holds_training_concepts_only_in_every_source() -> None:
    assert {fold(sample.labels["concept"]) for sample in samples("train")} == {"train"}


def test_validation_concepts_are_in_no_training_and_no_held_out_concept_validates() -> None:
    trained = {sample.labels["concept"] for sample in samples("train")}
    assert not trained & labels("validation", "emoji-google", "concept")
    assert not {sample.labels["concept"] for sample in samples("validation")} & {
        sample.labels["concept"] for sample in samples("test") if fold(sample.labels["concept"]) == "held-out"
    }


def test_label_seen_tells_whether_the_concept_was_in_training() -> None:
    emoji = labels("train", "emoji-google", "concept")
    stamps = labels("train", "tux-stamps", "concept")
    for sample in of("test", "emoji-twitter"):
        assert sample.labels["seen"] == ("yes" if sample.labels["concept"] in emoji else "no"), sample.key
    for sample in of("test", "tux-stamps"):
        assert sample.labels["seen"] == ("yes" if sample.labels["concept"] in stamps else "no"), sample.key
    unseen = [sample for sample in of("test", "emoji-twitter") if sample.labels["fold"] == "held-out"]
    assert 0.08 * 1911 < len(unseen) < 0.12 * 1911


@pytest.mark.parametrize("source", ["tux-stamps", "sonic-pi"])
def test_no_clip_stands_in_two_splits(source: str) -> None:
    where = defaultdict(set)
    for split in SPLITS:
        for _, part in clips(split, source):
            where[hashlib.sha256(content(part)).digest()].add(split)
    assert where
    assert all(len(splits) == 1 for splits in where.values())


def test_a_held_out_clip_takes_its_caption_and_its_language_out_of_training() -> None:
    trained = {
        (sample.labels["concept"], part.lang)
        for sample in of("train", "tux-stamps")
        for part in (*sample.of("text"), *sample.of("audio"))
        if part.lang
    }
    held = [
        (sample.labels["concept"], part.lang)
        for split in ("test", "validation")
        for sample, part in clips(split, "tux-stamps")
        if part.lang
    ]
    assert len(held) > 250
    assert not trained & set(held)


def test_each_trained_stamp_has_a_held_out_clip_under_its_own_key_with_picture_and_caption() -> None:
    held = [sample for sample in of("test", "tux-stamps") if sample.labels["seen"] == "yes"]
    for sample in held:
        (clip,) = sample.of("audio")
        assert sample.key == f"{sample.labels['stamp']}-{clip.lang}"
        assert len(sample.of("image")) == 1
        assert {part.lang for part in sample.of("text")} <= {clip.lang}
    asked = {sample.labels["concept"] for sample in held}
    assert asked == labels("train", "tux-stamps", "concept")


def test_every_kind_of_sound_and_every_exercise_is_trained_and_tested() -> None:
    for source, name, least in (("sonic-pi", "kind", 10), ("seglearn", "activity", 7)):
        assert labels("train", source, name) == labels("test", source, name)
        assert len(labels("train", source, name)) >= least


def test_subjects_are_disjoint() -> None:
    train, validation, test = (labels(split, "seglearn", "subject") for split in SPLITS)
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 10
    assert len(validation) >= 1
    assert len(test) >= 2


# ----------------------------------------------------------------------------------------------------- texts, languages


def test_languages_kept_for_outside_checks_are_nowhere() -> None:
    found = {part.lang for sample in everything() for part in sample.parts if part.lang}
    assert not {language for language in found if language.split("-")[0] in {*LEFT_OUT_LANGUAGES, *DUTCH}}


def test_names_in_enough_languages_and_scripts_english_first() -> None:
    scripts = set()
    for sample in of("train", "emoji-google"):
        names = sample.of("text")
        assert names[0].lang == "en"
        assert tuple(part.lang for part in names) == cldr.LANGUAGES
        for part in names:
            scripts |= {unicodedata.name(c, "? ").split()[0] for c in part.text or "" if c.isalpha()}
    assert len(cldr.LANGUAGES) >= 24
    assert len(scripts - {"FEMININE", "MASCULINE"}) >= 10


def test_speech_carries_language_and_speaker() -> None:
    for split in SPLITS:
        for sample, part in clips(split, "tux-stamps"):
            assert part.kind in ("speech", "sound"), sample.key
            assert (part.kind == "speech") == bool(part.lang and part.speaker), sample.key


def test_tokenizer_reserves_its_first_pieces_and_gives_every_text_back() -> None:
    tokenizer = SentencePieceTokenizer(SAMPLE / "tokenizer" / "tokenizer.model")
    assert tokenizer.reserved() == tuple(range(len(RESERVED)))
    texts = {part.text for sample in everything() for part in sample.parts if part.text}
    assert len(texts) > 30_000
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


# ------------------------------------------------------------------------------------------------------------- media


def test_pictures_are_small_palette_pngs() -> None:
    for sample in samples("train") + samples("test"):
        for part in sample.of("image"):
            with Image.open(io.BytesIO(content(part))) as picture:
                assert (picture.format, picture.mode) == ("PNG", "P")
                assert max(picture.size) == (64 if sample.source == "tux-stamps" else 48)


def test_sounds_are_opus_at_16_khz_with_the_pinned_serial() -> None:
    for source in ("tux-stamps", "sonic-pi"):
        for sample, part in clips("train", source):
            data = content(part)
            assert data[:4] == b"OggS"
            assert struct.unpack_from("<I", data, 14) == (SERIAL,), sample.key
        info = soundfile.info(io.BytesIO(content(clips("train", source)[0][1])))
        assert (info.samplerate, info.channels, info.subtype) == (RATE_HZ, 1, "OPUS")


@pytest.mark.parametrize("shard", ["sonic-pi/sonic-pi-test.tar", "tux-stamps/tux-stamps-validation.tar"])
def test_webdataset_reads_the_same_members(shard: str) -> None:
    index = ShardIndex(SAMPLE / shard)
    read = list(WebDataset(str(SAMPLE / shard), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == list(index.keys)
    for i, sample in enumerate(read):
        ours = index.read(i)
        assert {part.file: content(part) for part in ours.parts if part.file} == {
            name: value for name, value in sample.items() if name != "json" and not name.startswith("__")
        }
