"""Shards made of others: once, and anew where they would differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from data_prep import conversations, derived, preferences
from mmfusion.data.shards import ShardSet
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import DataError, Part, Sample


def text(key: str, said: str) -> Sample:
    return Sample(key=key, parts=(Part(type="text", text=said),), source="own")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    root.mkdir()
    write_manifest(root, [write_shard(root / "own.tar", [text("a", "a goose")], split="train")])
    return root


class Shouting:
    """Makes capitals, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, root: Path, split: str) -> Iterator[Sample]:
        self.asked += split == "train"
        if split == "train":
            yield text("b", (ShardSet(root, split).read(0).parts[0].text or "").upper())


def test_it_is_made_once_and_anew_where_it_would_differ(tmp_path: Path, own: Path) -> None:
    out, script, make = tmp_path / "cache" / "out", tmp_path / "script.py", Shouting()
    script.write_text("one")
    for _ in range(2):
        derived.prepare(out, own, make, [script])
    assert make.asked == 1
    assert ShardSet(out, "train").read(0).parts[0].text == "A GOOSE"
    script.write_text("two")
    derived.prepare(out, own, make, [script])
    assert make.asked == 2
    write_manifest(own, [write_shard(own / "own.tar", [text("a", "a duck")], split="train")])
    derived.prepare(out, own, make, [script])
    assert ShardSet(out, "train").read(0).parts[0].text == "A DUCK"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_in_another_place_than_its_own_nothing_is_made(tmp_path: Path, own: Path) -> None:
    make = Shouting()
    derived.prepare(tmp_path / "misspelt", own, make, [], only=str(tmp_path / "cache"))
    assert (make.asked, sorted(path.name for path in tmp_path.iterdir())) == (0, ["own"])
    derived.prepare(tmp_path / "cache", own, make, [], only=str(tmp_path / "cache"))
    assert make.asked == 1


@pytest.mark.parametrize("content", ["[]", "{", '{"made_from": "x"}'])
def test_a_broken_manifest_is_named(tmp_path: Path, own: Path, content: str) -> None:
    (own / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        derived.prepare(own, tmp_path / "own", Shouting(), [])


def test_what_fails_leaves_nothing(tmp_path: Path, own: Path) -> None:
    def broken(root: Path, split: str) -> Iterator[Sample]:
        yield text("a", "begun")
        raise OSError("disk full")

    with pytest.raises(DataError, match="cannot be written"):
        derived.prepare(tmp_path / "out", own, broken, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_what_somebody_else_put_there_stays(tmp_path: Path, own: Path) -> None:
    other = tmp_path / "more"
    other.mkdir()
    write_manifest(other, [write_shard(other / "o.tar", [text("c", "mine")], split="train")])
    derived.prepare(other, own, Shouting(), [])
    assert ShardSet(other, "train").read(0).parts[0].text == "mine"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds no manifest"):
        derived.prepare(thesis, own, Shouting(), [])
    assert [path.name for path in thesis.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("script", [conversations, preferences])
def test_the_same_bytes_again(script: ModuleType, few: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        script.prepare(tmp_path / name, few)
    one, two = ([(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())] for name in ("one", "two"))
    assert len(one) > 3
    assert one == two
