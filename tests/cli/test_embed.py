"""`mmfusion embed`: a row for each file that can be read, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmfusion
from mmfusion import embeddings
from mmfusion.cli.main import main


@pytest.fixture
def media(media_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, a sound and a series, which is the current one."""
    monkeypatch.chdir(media_files)
    return media_files


@pytest.mark.parametrize("chunk", [2, 16])
def test_a_row_for_each_file_and_text_in_their_order(
    chunk: int, tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "CHUNK", chunk)
    (media / "cut.png").write_bytes((media / "a.png").read_bytes()[:60])
    (media / "no suffix, [猫]").write_bytes((media / "a.png").read_bytes())
    (media / "furlongs.csv").write_text("x (furlong)\n1\n2\n")
    (media / "words").write_text("words")
    bad = ["cut.png", "furlongs.csv", "words", "nowhere.png", "."]
    files = ["a.wav", *bad[:2], "a.png", "a.csv", *bad[2:], "no suffix, [猫]"]
    texts = ["--text", "a cat", "--text", "", "--text", "猫"]
    assert main(["embed", str(tiny_run), *files, *texts, "--out", "e.parquet", "--rate-hz", "50"]) == 0
    out, error = capsys.readouterr()
    table = pq.read_table("e.parquet")
    rows = table.to_pylist()
    assert [row["path"] for row in rows] == ["a.wav", "a.png", "a.csv", "no suffix, [猫]", None, None]
    assert [row["text"] for row in rows] == [None, None, None, None, "a cat", "猫"]
    assert [row["modality"] for row in rows] == ["audio", "image", "sensor", "image", "text", "text"]
    model = mmfusion.load(tiny_run)
    alone = [
        model.embed(audio="a.wav"), model.embed(image="a.png"), model.embed(sensor="a.csv", rate_hz=50),
        model.embed(image="a.png"), model.embed(text=["a cat", "猫"]),
    ]  # fmt: skip
    embedded = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(embedded, np.concatenate(alone), atol=1e-5)
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[12]"
    assert table.schema.metadata[b"mmfusion.sha256"].decode() == model.lineage["files"]["model.safetensors"]
    assert table.schema.metadata[b"mmfusion.step"] == b"3"
    assert {line.split(": ")[1] for line in error.splitlines()} == {*bad, ""}
    assert "furlongs.csv: unknown unit" in error
    assert out.endswith("; 6 of 12 left out\n")


def test_nothing_that_can_be_read_leaves_no_file_and_the_old_one(
    tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (media / "e.parquet").write_bytes(b"PAR1 old")
    assert main(["embed", str(tiny_run), "nowhere.png", "--out", "e.parquet"]) == 1
    assert capsys.readouterr().out == "embedded nothing, no file was written; 1 of 1 left out\n"
    assert (media / "e.parquet").read_bytes() == b"PAR1 old"


def test_stopped_it_leaves_nothing_half_written(tiny_run: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = set(media.iterdir())
    monkeypatch.setattr(embeddings.pq.ParquetWriter, "close", stop)
    assert main(["embed", str(tiny_run), "a.png", "--out", "e.parquet"]) == 130
    assert set(media.iterdir()) == before


def test_each_fault_is_one_line(tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tiny_run)
    (media / "link").symlink_to("a.png")
    os.mkfifo(media / "pipe")
    before = [(media / name).read_bytes() for name in ("a.png", "a.wav")]
    for arguments, words in (
        ([run, "--out", "e.parquet"], "embed takes files or texts; got none"),
        ([run, "a.png", "--out", "no/e.parquet"], "--out no/e.parquet: there is no folder no"),
        ([run, "a.png", "--out", "."], "--out .: is a folder"),
        ([run, "a.wav", "a.png", "--out", "./a.png"], "--out a.png: is one of the files to embed"),
        ([run, "a.png", "--out", "link"], "--out link: is one of the files to embed"),
        ([run, "a.png", "--out", "a.wav"], "--out a.wav: is there and no Parquet file"),
        ([run, "a.png", "--out", "pipe"], "--out pipe: cannot be read (is no regular file)"),
        ([run, "a.npy", "--out", "e", "--channels", "a,", "--units", "g"], "channels[1]: must be a text"),
        (["nowhere", "a.png", "--out", "e.parquet"], "nowhere: no such folder"),
    ):
        assert main(["embed", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"mmfusion: {words}")
        assert len(error.splitlines()) == 1
    assert [(media / name).read_bytes() for name in ("a.png", "a.wav")] == before


def test_a_pipe_is_left_out_and_not_waited_for(tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pipe", "pipe.png"):
        os.mkfifo(media / name)
    assert main(["embed", str(tiny_run), "pipe", "pipe.png", "a.png", "--out", "e.parquet"]) == 0
    assert main(["embed", str(tiny_run), "a.png", "--out", "e.parquet"]) == 0  # a table may be made anew
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("is no regular file" in line for line in lines)
