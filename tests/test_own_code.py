"""A user's own encoder, objective and task, in packages outside the repository: trained, loaded, named to verbs."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_run as tiny
from safetensors.torch import load_file

import mmfusion
from mmfusion import checkpoint
from mmfusion.checkpoint import CheckpointError
from mmfusion.cli.flags import own_code_found
from mmfusion.cli.main import main

ROOT = Path(__file__).parent.parent
CLASS = "my_pkg.MyEncoder"


def forget(*modules: str) -> None:
    for name in modules:
        sys.modules.pop(name, None)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python knows no own package before the test, and none after it."""
    forget("my_pkg", "my_words")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget("my_pkg", "my_words")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the notebook leaves: package, configuration, and a run of one step."""
    home = tmp_path_factory.mktemp("own")
    source = (ROOT / "notebooks" / "03_own_encoder.py").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMFUSION_OWN", str(home))
        patch.delenv("MMFUSION_STEPS", raising=False)
        patch.setattr(sys, "path", list(sys.path))
        exec(compile(source, "03_own_encoder.py", "exec"), {"__name__": "__main__"})
    forget("my_pkg")
    return home


# -------------------------------------------------------------------------------------------------------- own encoder


def test_an_own_encoder_takes_fifty_lines_and_nothing_in_the_repository(own: Path) -> None:
    files = [own / "my_pkg.py", own / "my_conf" / "model" / "image" / "mine.yaml"]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 50
    assert not list(ROOT.glob("my_*"))
    weights = load_file(own / "run" / "checkpoint" / "model.safetensors")
    assert weights["encoders.image.layers.0.weight"].shape == (96, 96, 3, 3)


def test_its_checkpoint_loads_with_the_class_or_its_name(
    own: Path, path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=rf"'{CLASS}' is no class.* --allow {CLASS}$"):
        mmfusion.load(own / "run")
    with pytest.raises(CheckpointError, match="no module named 'my_pkg'; install it, or put its folder on PYTHONPATH"):
        mmfusion.load(own / "run", allow=[CLASS])
    monkeypatch.syspath_prepend(own)
    import my_pkg  # pyright: ignore[reportMissingImports]  (the notebook wrote it)

    pictures = [tiny.picture(), tiny.picture(size=(9, 70))]
    rows = [mmfusion.load(own / "run", allow=allow).embed(image=pictures) for allow in ([my_pkg.MyEncoder], [CLASS])]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert abs(rows[0][0] @ rows[0][1]) < 0.999


def test_every_verb_that_loads_takes_it_by_name(
    own: Path, path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own)  # where the package is
    picture = tmp_path / "a.png"
    picture.write_bytes(tiny.png(tiny.picture()))
    verbs = {
        ("generate", "run", "--image", str(picture), "--max-new", "2"): 1,
        ("embed", "run", str(picture), "--out", str(tmp_path / "e.parquet")): 1,
        ("train", "resume=run"): 2,
    }
    for verb, refused in verbs.items():
        assert main(verb) == refused
        assert f"--allow {CLASS}\n" in capsys.readouterr().err
        assert main([*verb, "--allow", CLASS]) == 0


def test_a_misspelt_argument_has_its_near_match_before_data_is_opened(
    own: Path, path: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config-dir", str(own / "my_conf"), "model/image=mine", "data.root=nowhere"]
    for given, said in {
        "widht=64": "widht: MyEncoder has no such argument; did you mean 'width'?",
        "width=0": "width: must be greater than 0, not 0",
        "merge=two": "merge: must be a valid integer, not 'two'",
    }.items():
        assert main(["train", *options, f"model.encoders.image.{given}"]) == 2
        assert f"mmfusion: model.encoders.image.{said}" in capsys.readouterr().err
    assert main(["train", *options[:2], "model/image=mime"]) == 2
    assert "model/image=mime: no such option; did you mean 'mine'?" in capsys.readouterr().err


@pytest.mark.slow  # a minute: sixty steps
def test_it_learns(tmp_path: Path, path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFUSION_OWN", str(tmp_path))
    monkeypatch.setenv("MMFUSION_STEPS", "60")
    exec(compile((ROOT / "notebooks" / "03_own_encoder.py").read_text(), "03", "exec"), {"__name__": "__main__"})
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train/contrastive/image-text"] or "nan") for row in csv.DictReader(file)]
    assert np.nanmean(losses[-5:]) < np.nanmean(losses[:5]) - 0.5


# ----------------------------------------------------------------------------------------------- own objective and task


def test_an_own_objective_and_an_own_task(tmp_path: Path, path: None, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "tests" / "own_package", tmp_path, dirs_exist_ok=True)
    chosen = ["objective=[captioning,uniformity]", "evaluation=mine", "debug=one_step"]
    mine = ["train", "--config-dir", str(tmp_path / "my_conf"), *chosen, "data.workers=0", "data.batch_size=16"]
    assert main([*mine, "objective.uniformity.sharp=1"]) == 2
    assert "Uniformity has no such argument; did you mean 'sharpness'?" in capsys.readouterr().err
    assert main([*mine, "evaluation.same_twice.mots=3"]) == 2
    assert "same_twice has no such argument; did you mean 'most'?" in capsys.readouterr().err
    assert main([*mine, f"paths.run={tmp_path / 'run'}", "weights.uniformity=0.5"]) == 0
    (row,) = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (row["task"], row["value"], row["n"]) == ("same_twice", 1.0, 20)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert any(0 < float(line["val/uniformity"] or 0) <= 1 for line in csv.DictReader(file))
    assert main(["train", f"resume={tmp_path / 'run'}", "--allow", "my_words.Uniformity"]) == 2
    assert "--allow my_words.same_twice" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- names and folders


class Mine:
    class Inner: ...


def test_a_class_stands_for_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.buildable([Mine, Mine.Inner, "a.B"]) == checkpoint.BUILDABLE | {
        f"{__name__}.Mine", f"{__name__}.Mine.Inner", "a.B",
    }  # fmt: skip
    package = type(sys)("a_package")
    package.Mine = Mine  # handed on, as an __init__.py does
    monkeypatch.setitem(sys.modules, "a_package", package)
    monkeypatch.setattr(Mine, "__module__", "a_package.encoders")
    assert checkpoint.buildable([Mine]) - checkpoint.BUILDABLE == {"a_package.Mine", "a_package.encoders.Mine"}
    package.Mine = object
    assert checkpoint.buildable([Mine]) - checkpoint.BUILDABLE == {"a_package.encoders.Mine"}


def test_a_class_that_nothing_can_import_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local: ...

    typed = type("Typed", (), {"__module__": "__main__"})
    for allow, words in (
        ([Local], "Local is defined in a function.* train with my_package.Local"),
        ([typed], "Typed is defined in a script or notebook.* train with my_package.Typed"),
        ([3], "3 is no class"),
        ("my_pkg.MyEncoder", "must be a list of own classes"),
        (Mine, "must be a list of own classes"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            checkpoint.buildable(allow)  # pyright: ignore[reportArgumentType]  (what a user may give)
        assert "\n" not in str(caught.value)


def test_own_folders_are_looked_into_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    for nothing in (argparse.Namespace(overrides=[]), argparse.Namespace(config_dir=None, allow=[])):
        with own_code_found(nothing):
            assert sys.path == before
    own = argparse.Namespace(config_dir=os.path.join("below", "my_conf"), allow=["my_pkg.MyEncoder"])
    with own_code_found(own):
        assert sys.path == [*before, str(tmp_path / "below"), str(tmp_path)]
    assert sys.path == before
