"""`mmfusion data show` and `data stats` as they are typed: on real shards, on plain tars, on what is neither."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from mmfusion.cli.main import main

SAMPLE = Path(__file__).parents[2] / "data_prep" / "sample"
VERBS = ("show", "stats")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two tars as img2dataset writes them."""
    root = tmp_path / "plain"
    root.mkdir()
    for n in range(2):
        with tarfile.open(root / f"{n:05d}.tar", "w") as tar:
            for i in range(3):
                for suffix, data in (("json", b'{"url": "x", "width": 3}'), ("txt", f"text {n} {i}".encode())):
                    info = tarfile.TarInfo(f"{n:05d}{i:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


def test_show_writes_a_page_and_prints_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page one.html"
    assert main(["data", "show", str(SAMPLE), "--n", "8", "--split", "test", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == out.as_uri()
    page = out.read_text(encoding="utf-8")
    for source in ("emoji-twitter", "seglearn", "sonic-pi", "tux-stamps"):
        assert f'">{source}</h2>' in page
    assert page.count("<article") == 8
    assert "8 of 2,137 in test" in page


def test_show_takes_keys_from_any_split_and_names_the_page_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", str(SAMPLE), "--key", "frog-es", "watch-s08-left-fel"]) == 0
    page = (tmp_path / "sample-train.html").read_text(encoding="utf-8")
    assert page.index("frog-es") < page.index("watch-s08-left-fel")
    assert "acc_x" in page
    assert "<audio" in page


def test_stats_counts_the_sample_as_its_manifest_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "s.html"
    assert main(["data", "stats", str(SAMPLE), "--json", "--out", str(out)]) == 0
    numbers = json.loads(capsys.readouterr().out)
    listed = json.loads((SAMPLE / "manifest.json").read_text())["shards"]
    total = numbers["total"]
    assert total["samples"] == sum(shard["samples"] for shard in listed)
    for modality in ("image", "audio", "sensor", "text"):
        assert total[modality] == sum(shard["modalities"].get(modality, 0) for shard in listed)
    assert total["audio_hours"] + total["sensor_hours"] == pytest.approx(sum(s["hours"] for s in listed), abs=1e-3)
    assert numbers["sizes"]["text_pieces"]["n"] == total["text"]
    assert "skipped" not in numbers
    assert "Splits and sources" in out.read_text()


def test_plain_tars_need_no_manifest(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", str(plain)]) == 0
    assert "text 1 2" in (tmp_path / "plain-train.html").read_text()
    assert main(["data", "stats", str(plain)]) == 0
    said = capsys.readouterr().out
    assert "Samples that state no licence: 6." in said
    assert (tmp_path / "plain-stats.html").as_uri() in said


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("nowhere", "no such folder"),
        ("empty", "mmfusion data pack"),
        ("cut", "00000.tar: is cut inside"),
        ("missing", "1 of 1 shards are missing: gone.tar"),
        ("file", "no such folder"),
    ],
)
def test_what_is_no_set_of_shards_is_one_line(
    verb: str, fault: str, expected: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    root = {"nowhere": tmp_path / "nowhere", "file": plain / "00000.tar"}.get(fault, plain)
    if fault == "empty":
        for tar in plain.iterdir():
            tar.unlink()
    elif fault == "cut":
        (plain / "00000.tar").write_bytes((plain / "00000.tar").read_bytes()[:520])
    elif fault == "missing":
        entry = {"file": "gone.tar", "split": "train", "samples": 1, "bytes": 1, "sha256": ""}
        (plain / "manifest.json").write_text(json.dumps({"shards": [entry]}))
    assert main(["data", verb, str(root)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mmfusion: ")
    assert expected in said.err
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_place_where_no_page_can_be_is_said_before_reading(
    verb: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path, tmp_path / "none" / "x.html"):
        assert main(["data", verb, str(plain), "--out", str(out)]) == 1
        assert "choose another with --out FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--split", "dev"], "no shard of split 'dev'; it has test, train, validation"),
        (["--source", "nix"], "it has emoji-google, seglearn, sonic-pi, tux-stamps"),
        (["--key", "nix"], "no sample has the key 'nix'"),
    ],
)
def test_what_the_set_does_not_have_is_named(
    flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "show", str(SAMPLE), "--out", str(tmp_path / "x.html"), *flags]) == 1
    assert expected in capsys.readouterr().err


def test_a_number_of_samples_counts_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "show", str(SAMPLE), "--n", "0"])
    assert "'0' is no whole number from 1 on" in capsys.readouterr().err


def test_the_data_tour_runs_from_top_to_bottom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = SAMPLE.parents[1]
    monkeypatch.chdir(root)
    monkeypatch.delenv("MMFUSION_DATA", raising=False)
    source = (root / "notebooks" / "02_data_tour.py").read_text(encoding="utf-8")
    exec(compile(source, "02_data_tour.py", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "image values[36, 192] -> 9 tokens" in said  # 48 px in squares of 8, four of them a token
    assert "rank 1 of 2: [60, 61, 62, 63]" in said
    assert "the first 1,930 positions meet 1,930 samples: each once" in said
