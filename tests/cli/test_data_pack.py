"""`mmfusion data pack` as it is typed: what it prints, what bad input ends in, and that the next command trains."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf
from PIL import Image

from mmfusion import config
from mmfusion.cli import data_pack
from mmfusion.cli.main import main
from mmfusion.data.batching import ROW_LENGTH, TOKENS
from mmfusion.data.pack.layouts import LAYOUTS
from mmfusion.types import Part

COLOURS = ("red fish", "blue fish", "green tree", "grey stone")


def own_data(root: Path, modalities: Sequence[str], rows: int = 40) -> Path:
    """A table of real files in plain formats, written without any of our own code."""
    root.mkdir(parents=True)
    t = np.arange(50) / 50
    with (root / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*modalities, "label"])
        for i in range(rows):
            shade = (60 * (i % 4), i, 90)
            Image.new("RGB", (32, 24), shade).save(root / f"Bild {i} (1).jpg")
            soundfile.write(root / f"{i}.ogg", 0.3 * np.sin(2 * np.pi * (200 + 9 * i) * np.arange(4000) / 16000), 16000)
            np.savetxt(root / f"{i}.csv", np.c_[t, np.sin(t * i)], delimiter=",", header="time_s,acc (g)", comments="")
            cells = {"image": f"Bild {i} (1).jpg", "audio": f"{i}.ogg", "sensor": f"{i}.csv"}
            writer.writerow([*(cells[name] for name in modalities), COLOURS[i % 4]])
    return root / "mine.csv"


@pytest.mark.parametrize(
    ("modalities", "flags"),
    [
        (("image",), ("--validation", "0")),
        (("audio", "sensor"), ()),
    ],
)
def test_the_next_command_trains_on_what_was_packed(
    modalities: Sequence[str], flags: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "my shards", tmp_path / "run"
    assert main(["data", "pack", str(own_data(tmp_path / "in", modalities)), str(out), *flags]) == 0
    *_, stats, train = capsys.readouterr().out.splitlines()
    assert shlex.split(stats) == ["mmfusion", "data", "stats", str(out)]
    command = shlex.split(train)
    assert command == ["mmfusion", "train", "data=shards", f"data.root={out}"]
    few = ["debug=one_step", "evaluation=none", "data.workers=0", f"paths.run={run}"]
    assert main([*command[1:], *few]) == 0
    config = json.loads((run / "checkpoint" / "lineage.json").read_text())
    assert config["step"] == 1
    best = [path.name for path in (run / "resume").glob("best*")]
    assert bool(best) == ("--validation" not in flags)  # without validation there is no best, and nothing breaks


def test_the_summary_names_columns_splits_languages_labels_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = own_data(tmp_path / "in", ("image", "sensor"))
    (tmp_path / "in" / "7.csv").write_text("no series")
    assert main(["data", "pack", str(source), str(tmp_path / "out"), "--lang", "de"]) == 0
    said = capsys.readouterr()
    lines = " ".join(said.out.split())
    for words in (
        "mine.csv: 40 rows", "image pictures", "sensor series", "split by file: 10% for validation and 10% for test",
        "source split samples image sensor text hours MB shards", "languages: de 39", "labels: red fish 10",
        "series npy 39: acc (g)",
    ):  # fmt: skip
        assert words in lines
    assert "1 rows left out" in said.err
    assert "row 8: 7.csv" in said.err


BAD: dict[str, tuple[list[str], str]] = {
    "a source that is not there": (["nowhere.csv", "out"], "nowhere.csv: no such file or folder"),
    "a column that is not there": (["mine.csv", "out", "--image", "imag"], "no column 'imag'; did you mean 'image'?"),
    "a layout that it has not": (["mine.csv", "out", "--layout", "coco"], "not laid out as coco, which needs"),
    "an unknown kind of file": (["1.ogg", "out"], "no layout that is known. table:"),
    "a flag of tables for folders": ([".", "out", "--layout", "folders"], "not laid out as folders"),
    "an out that is a file": (["mine.csv", "1.ogg"], "1.ogg: is a file; name a folder"),
    "an out that cannot be": (["mine.csv", "1.ogg/out"], "cannot write there"),
    "an out that holds the table": (["mine.csv", "."], "lies in mine.csv or holds it"),
    "a share that is none": (["mine.csv", "out", "--test", "1.5"], "shares are at least 0"),
    "no room in a shard": (["mine.csv", "out", "--shard-mb", "0"], "--shard-mb 0.0: must be"),
    "a share of bad rows that is none": (["mine.csv", "out", "--max-skipped", "nan"], "is a share between 0 and 1"),
    "a rate that is none": (["mine.csv", "out", "--rate-hz", "-1"], "--rate-hz -1.0: must be between"),
    "a language that is none": (["mine.csv", "out", "--lang", "not a lang!"], "--lang 'not a lang!': is no language"),
    "a wrong kind of column": (["mine.csv", "out", "--audio", "image"], "another kind of file (40)"),
    "no tokenizer": (["mine.csv", "out", "--tokenizer", "1.ogg"], "no SentencePiece model can be read here"),
    "another root": (["mine.csv", "out", "--root", "nowhere"], "nowhere: no such folder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "in"
    own_data(folder, ("image",))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[case]
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert main(["data", "pack", *arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mmfusion: ")
    assert message in last
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("flags", [["--layout", "cocoa"], ["--rate-hz", "fast"], ["--validation"], ["--imgae", "x"]])
def test_a_wrong_flag_is_the_parsers_to_refuse(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "pack", "a", "b", *flags])
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_layout() -> None:
    assert set(data_pack._LAYOUTS) == set(LAYOUTS)
    assert all(name in data_pack.DESCRIPTION for name in LAYOUTS)


def test_a_flag_of_tables_is_refused_for_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_data(tmp_path / "in" / "cats", ("image",), rows=2)
    assert main(["data", "pack", str(tmp_path / "in"), str(tmp_path / "out"), "--group", "subject"]) == 1
    assert "--group: is for tables" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_is_told_to_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmfusion.data.pack import vocabulary

    source = own_data(tmp_path / "in", ("image",), rows=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "SIZE", 4000)
        assert main(["data", "pack", str(source), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith("model.decoder.vocab=8192\n")


def test_texts_longer_than_a_row_are_told_to_training_which_cannot_do_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = own_data(tmp_path / "in", ("image",))
    heading, *rows = source.read_text().splitlines()
    source.write_text(
        "\n".join([f"{heading},text", *(f"{row},{'a red fish and ' * 40}{i}" for i, row in enumerate(rows))])
    )
    assert main(["data", "pack", str(source), str(tmp_path / "out")]) == 0
    *command, row_length = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert row_length.startswith("data.pipeline.row_length=")
    few = ["debug=one_step", "evaluation=none", "data.workers=0", "data.batch_size=16", "data.pipeline.captioned=1"]
    assert main([*command[1:], *few, f"paths.run={tmp_path / 'without'}"]) == 1
    assert "16 of 16 samples cannot be used (document longer than data.pipeline" in capsys.readouterr().err
    assert main([*command[1:], row_length, *few, f"paths.run={tmp_path / 'run'}"]) == 0


def test_what_a_row_holds_is_what_the_configuration_says() -> None:
    pipeline = config.compose(["data=shards", "data.root=x"]).data.pipeline
    assert pipeline.row_length == ROW_LENGTH
    times = np.arange(4000) / 50
    wide = Part(type="image", data=np.zeros((300, 300, 3), np.uint8))
    clip = Part(type="audio", data=np.zeros(160_000, np.float32), rate_hz=16_000)
    series = Part(type="sensor", data=np.zeros((4000, 1), np.float32), times_s=times, channels=("a",), units=("g",))
    made: dict[str, Any] = config.build(OmegaConf.to_container(pipeline.patchify, resolve=True))
    assert {part.type: made[part.type](part).tokens(made[part.type].merge) for part in (wide, clip, series)} == TOKENS
