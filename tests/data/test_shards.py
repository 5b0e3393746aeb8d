"""Reading tars: every case that plain readers pass over in silence is refused with the shard's name and a remedy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny_media import list_shard, npy, picture_sample, png, sound, tar, tone, write_mixed, write_set

from mmfusion.data.shards import ShardSet, entries_of, read_manifest, verify
from mmfusion.data.writer import describe_shard, write_manifest, write_shard
from mmfusion.types import DataError, SkipSample


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.tar", [picture_sample(i) for i in range(4)], split="train")
    return tmp_path / "a.tar"


def edit(root: Path, **fields: object) -> None:
    path = root / "manifest.json"
    listed = json.loads(path.read_text())
    listed["shards"][0].update(fields)
    path.write_text(json.dumps(listed))


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    write_mixed(tmp_path, 3, 2, 2)
    for name in ("pictures.tar", "watch.tar"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"2 of 4 shards are missing: pictures.tar, watch.tar"):
        verify(tmp_path)
    with pytest.raises(DataError, match=r"2 of 3 shards are missing"):
        ShardSet(tmp_path, "train")


def test_a_changed_shard_differs_from_its_checksum(tmp_path: Path) -> None:
    write_mixed(tmp_path, 3, 2, 2)
    path = tmp_path / "pictures.tar"
    path.write_bytes(path.read_bytes().replace(b"goose 1", b"moose 1"))
    with pytest.raises(DataError, match=r"pictures.tar: differs from the manifest's sha256"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pipe:touch pwned", "no pipe"),
        ("file:/etc/passwd", "no pipe"),
        ("https://example.org/a.tar", "no pipe"),
        ("a\0b.tar", "no file name"),
        ("../outside.tar", "outside"),
        ("/etc/passwd", "outside"),
        ("link.tar", "outside"),
    ],
)
def test_a_manifest_reaches_nothing_outside_its_folder(tmp_path: Path, file: str, message: str) -> None:
    root = tmp_path / "set"
    write_set(root, {"a.tar": ("train", [picture_sample(0)])})
    write_shard(tmp_path / "outside.tar", [picture_sample(0)], split="train")
    (root / "link.tar").symlink_to(tmp_path / "outside.tar")
    edit(root, file=file)
    with pytest.raises(DataError, match=message):
        read_manifest(root)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "non-empty list"),
        ('{"shards": []}', "non-empty list"),
        ('{"shards": [3]}', r"shards\[0\] is no object"),
        ('{"shards": [{"file": "a"}]}', "field 'split' is missing"),
        ('{"shards": [{"file": "a", "split": "train", "samples": true, "bytes": 1, "sha256": ""}]}', "'samples'"),
        (
            '{"shards": [{"file": "a", "split": "t", "samples": 1, "bytes": 1, "sha256": "", "colour": 1}]}',
            "unknown field 'colour'",
        ),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_no_manifest_and_no_such_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest here"):
        ShardSet(tmp_path, "train")
    write_set(tmp_path, {"a.tar": ("train", [picture_sample(0)])})
    with pytest.raises(DataError, match="no shard of split 'test'; it has train"):
        ShardSet(tmp_path, "test")


def test_the_same_key_in_train_and_test_is_refused(tmp_path: Path) -> None:
    write_set(
        tmp_path,
        {
            "test.tar": ("test", [picture_sample(i) for i in range(3, 6)]),
            "train.tar": ("train", [picture_sample(i) for i in range(4)]),
        },
    )
    with pytest.raises(DataError, match=r"test.tar: key 'p0003' stands in train.tar \(train\) too"):
        verify(tmp_path)


def test_the_same_key_in_two_sources_of_a_split_is_not(tmp_path: Path) -> None:
    write_set(tmp_path, {f"{n}.tar": ("train", [picture_sample(0, n)]) for n in ("a", "b")})
    verify(tmp_path)
    assert ShardSet(tmp_path, "train").sources == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.zeros((5, 2), np.float32)), r"an array \[5, 2\] for 3 channels"),
        (npy(np.zeros(5, np.float32)), r"an array \[5\] for 3 channels"),
        (npy(np.array([[{}, 1, 2]], dtype=object)), "no objects"),
        (npy(np.zeros((5, 3), np.float32)).replace(b"(5, 3)", b"(9999999999999, 3)")[:2000], "no npy|claims"),
        (b"PK\x03\x04" + bytes(100), "no npy"),
        (b"", "no npy"),
    ],
)
def test_a_series_of_another_shape_is_refused_before_training(tmp_path: Path, data: bytes, message: str) -> None:
    listed = b'{"parts":[{"type":"sensor","file":"npy","rate_hz":50,"channels":["x","y","z"],"units":["g","g","g"]}]}'
    path = tar(tmp_path / "a.tar", [("w0.json", listed), ("w0.npy", npy(np.zeros((5, 3), np.float32)))])
    entry = describe_shard(path, split="train")
    tar(path, [("w0.json", listed), ("w0.npy", data)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(tmp_path, [dataclasses.replace(entry, sha256=digest)])
    with pytest.raises(DataError, match=message) as caught:
        verify(tmp_path)
    assert "'w0'" in str(caught.value)
    assert "npy" in str(caught.value)


def test_a_set_is_its_shards_one_after_the_other(mixed: Path) -> None:
    shards = ShardSet(mixed, "train")
    assert len(shards) == 34
    assert shards.sources == {"pictures": 20, "spoken": 8, "watch": 6}
    assert [s.key for s in shards][18:22] == ["p0018", "p0019", "s0000", "s0001"]
    assert [shards.source_of(i) for i in (0, 19, 20, 28, 33)] == ["pictures", "pictures", "spoken", "watch", "watch"]
    assert [shards.locate("spoken", 3), shards.locate("watch", 0)] == [23, 28]
    with pytest.raises(IndexError):
        shards.locate("watch", 6)
    assert pickle.loads(pickle.dumps(shards)).read(5).key == "p0005"


def test_a_source_may_have_several_shards(tmp_path: Path) -> None:
    names = ("a0.tar", "b.tar", "a1.tar")
    write_set(
        tmp_path, {n: ("train", [picture_sample(10 * i + k, n[0]) for k in range(3)]) for i, n in enumerate(names)}
    )
    shards = ShardSet(tmp_path, "train")
    assert shards.sources == {"a": 6, "b": 3}
    assert [shards.read(shards.locate("a", k)).key for k in range(6)] == [f"p{k:04d}" for k in (0, 1, 2, 20, 21, 22)]


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.data.shards._MAX_OPEN", 2)
    write_set(tmp_path, {f"{k}.tar": ("train", [picture_sample(k, str(k))]) for k in range(5)})
    shards = ShardSet(tmp_path, "train")
    for _ in range(2):
        for i in range(5):
            assert shards.read(i).key == f"p{i:04d}"
            assert sum(shard._file is not None for shard in shards.shards) <= 2


def test_an_img2dataset_tar_is_read_as_it_is(tmp_path: Path) -> None:
    meta = json.dumps({"caption": "a goose", "url": "http://x", "key": "000000000", "status": "success"}).encode()
    path = tar(
        tmp_path / "00000.tar",
        [
            ("000000000.jpg", png(form="JPEG")),
            ("000000000.json", meta),
            ("000000000.txt", b"a goose"),
            ("000000001.flac", sound(tone(), "FLAC")),
            ("000000001.txt", b"a tone"),
        ],
    )
    root = list_shard(path)
    verify(root)
    entry = read_manifest(root)[0]
    assert (entry.samples, dict(entry.modalities), entry.source) == (2, {"audio": 1, "image": 1, "text": 2}, "00000")
    assert [s.key for s in ShardSet(root, "train")] == ["000000000", "000000001"]


def test_text_that_is_not_utf8_costs_one_sample_of_a_shard(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("a.png", png()), ("a.txt", b"caf\xe9"), ("b.png", png()), ("b.txt", b"goose")])
    shards = ShardSet(list_shard(path), "train")
    with pytest.raises(SkipSample, match=r"a.tar: key 'a': txt is not UTF-8") as caught:
        shards.read(0)
    assert caught.value.reason == "text not utf-8"
    assert shards.read(1).parts[1].text == "goose"


def test_tars_without_a_manifest_are_all_of_the_split_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/1.tar", "a.tar"):
        tar(tmp_path / name, [(f"{name[0]}1.jpg", b"x"), (f"{name[0]}1.txt", b"a goose")])
    entries = entries_of(tmp_path, "test")
    assert [(e.file, e.split, e.samples) for e in entries] == [("a.tar", "test", 1), ("b/1.tar", "test", 1)]
    assert [s.key for s in ShardSet(tmp_path, "test", entries)] == ["a1", "b1"]
    listed = write_manifest(tmp_path, [describe_shard(tmp_path / "a.tar", split="train")])
    assert [e.file for e in entries_of(tmp_path, "test")] == ["a.tar"]  # the manifest's word counts
    listed.unlink()
    with pytest.raises(DataError, match="no such folder"):
        entries_of(tmp_path / "nowhere", "test")
