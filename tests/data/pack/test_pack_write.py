"""OUT appears whole or not at all, whatever ends a pack."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tomllib
from pathlib import Path

import pytest
from tiny_sources import colour, everything, mixed_table, put

from mmfusion.data.pack import pack as packing
from mmfusion.data.pack.pack import pack
from mmfusion.data.pack.vocabulary import SIZE, default_tokenizer
from mmfusion.data.pack.write import draft_folder
from mmfusion.data.shards import MANIFEST, verify
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.types import DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for i in range(12):
        put(tmp_path / "in" / "cats" / f"{i}.png", colour(i))
    return tmp_path / "in"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), "^$"),
        (
            OSError(28, "No space left on device"),
            r"deep/out: cannot be written \(No space left on device\); free space",
        ),
    ],
)
def test_what_ends_a_pack_leaves_nothing(
    source: Path, error: BaseException, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_shards(root: Path, *rest: object, **more: object) -> None:
        put(root / "half.tar", "half")
        raise error

    monkeypatch.setattr(packing, "write_shards", write_shards)
    with pytest.raises((KeyboardInterrupt, DataError), match=told):
        pack(source, source.parent / "new" / "deep" / "out")
    assert listing(source.parent) == ["in"]


def test_a_killed_pack_leaves_no_out_and_the_next_one_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_table(tmp_path / "in", rows=12)

    def die(*rest: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(packing.shutil, "copyfile", die)
    killed = multiprocessing.get_context("fork").Process(target=pack, args=(source, tmp_path / "out"), daemon=True)
    killed.start()
    killed.join(60)
    monkeypatch.undo()
    assert killed.exitcode == -signal.SIGKILL
    assert listing(tmp_path) == [".out.draft", "in"]
    assert (tmp_path / ".out.draft" / MANIFEST).is_file()
    put(tmp_path / ".out.draft" / "stale" / "old.tar", "x")
    pack(source, tmp_path / "out")
    assert listing(tmp_path) == ["in", "out"]
    assert listing(tmp_path / "out") == [MANIFEST, "mine", "tokenizer.model"]


def test_what_is_told_of_a_bad_picture_is_the_same_each_time(source: Path) -> None:
    put(source / "cats" / "bad.png", "no picture")
    for out in ("a", "b"):
        pack(source, source.parent / out)
    told = (source.parent / "a" / "skipped.csv").read_text()
    assert 'cats/bad.png,"corrupt picture: no PNG, JPEG or WEBP"' in told.splitlines()[1]
    assert (source.parent / "b" / "skipped.csv").read_text() == told


def test_two_packs_to_one_place_do_not_meet(source: Path) -> None:
    out = source.parent / "out"
    with draft_folder(out) as draft:
        put(draft / "x", "1")
        with pytest.raises(DataError, match="another process packs it"):
            pack(source, out)
        assert (draft / "x").is_file()
    assert listing(out) == ["x"]


def test_an_out_that_exists_is_replaced_only_if_it_was_packed_and_one_asks(source: Path) -> None:
    out = source.parent / "out"
    out.mkdir()
    pack(source, out)  # an empty folder is as good as none
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(DataError, match=r"out: is not empty; .*--overwrite"):
        pack(source, out)
    put(source / "cats" / "more.png", colour(77))
    pack(source, out, overwrite=True)
    assert (out / MANIFEST).read_bytes() != before
    assert len(everything(out)) == 13
    assert listing(source.parent) == ["in", "out"]
    own = put(source.parent / "thesis" / "chapter.txt", "years of work")
    with pytest.raises(DataError, match=r"holds no manifest\.json.*leaves it alone"):
        pack(source, own.parent, overwrite=True)
    assert own.read_text() == "years of work"


def test_an_overwrite_that_fails_keeps_what_was_there(source: Path) -> None:
    out = source.parent / "out"
    pack(source, out)
    for path in (source / "cats").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="12 of 12 rows"):
        pack(source, out, overwrite=True)
    verify(out)


@pytest.mark.parametrize("where", [".", "..", "shards", "cats/shards"])
def test_out_may_not_hold_or_lie_in_the_source(source: Path, where: str) -> None:
    with pytest.raises(DataError, match=r"lies in .* or holds it"):
        pack(source, source / where, overwrite=True)
    assert len(list(source.rglob("*.png"))) == 12


def test_a_table_may_have_its_shards_beside_it(tmp_path: Path) -> None:
    pack(mixed_table(tmp_path, rows=6), tmp_path / "out")
    assert len(everything(tmp_path / "out")) == 6


def test_a_place_that_cannot_be_written_is_one_line(source: Path) -> None:
    file = put(source.parent / "file", "x")
    with pytest.raises(DataError, match="cannot write there"):
        pack(source, file / "out")
    with pytest.raises(DataError, match="is a file; name a folder"):
        pack(source, file)


def test_a_packed_folder_is_no_source(source: Path) -> None:
    pack(source, source.parent / "out")
    with pytest.raises(DataError, match=r"is packed already .*data\.root="):
        pack(source.parent / "out", source.parent / "again")


def test_the_vocabulary_is_the_samples_unless_one_is_given(source: Path, tokenizer_path: Path) -> None:
    pack(source, source.parent / "out")
    assert (source.parent / "out" / "tokenizer.model").read_bytes() == default_tokenizer().read_bytes()
    assert SentencePieceTokenizer(default_tokenizer()).size == SIZE
    pack(source, source.parent / "own", tokenizer=tokenizer_path)
    assert (source.parent / "own" / "tokenizer.model").read_bytes() == tokenizer_path.read_bytes()
    shipped = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert shipped["force-include"]["data_prep/sample/tokenizer"] == "mmfusion/assets"
    with pytest.raises(DataError, match=r"no SentencePiece model can be read here"):
        pack(source, source.parent / "bad", tokenizer=source.parent / "nowhere.model")
    assert not (source.parent / "bad").exists()


def test_a_file_that_changes_while_it_is_packed_stops_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(*rest: object) -> tuple[list[str], list[str]]:
        (source / "cats" / "3.png").unlink()
        return ["train"] * 12, []

    monkeypatch.setattr(packing, "deal", deal)
    with pytest.raises(DataError, match=r"cats/3: changed while it was packed \(missing file\)"):
        pack(source, source.parent / "out")
    assert listing(source.parent) == ["in"]


@pytest.mark.parametrize("now", [colour(200), b"no picture"])
def test_a_file_that_is_another_when_it_is_written_stops_it(
    source: Path, now: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deal(*rest: object) -> tuple[list[str], list[str]]:
        put(source / "cats" / "3.png", now)
        return ["train"] * 12, []

    monkeypatch.setattr(packing, "deal", deal)
    with pytest.raises(DataError, match=r"cats/3\.png: changed while it was packed; start again"):
        pack(source, source.parent / "out")
    assert listing(source.parent) == ["in"]
