"""`mmfusion train` on the embedded sample: a run and what it leaves, and what each fault ends in."""

from __future__ import annotations

import argparse
import csv
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmfusion.cli import launch, start
from mmfusion.cli.main import main
from mmfusion.runs import energy
from tests.cli.trained import SAMPLE, SMALL, as_typed, fails
from tests.forked import Forked
from tests.report.html_page import Page


def test_one_step_goes_through_everything(one_step_run: Path) -> None:
    metrics = json.loads((one_step_run / "metrics.json").read_text())
    assert {row["task"] for row in metrics} >= {"picture_to_name", "spoken_to_picture", "sound_kind", "watch_exercise"}
    for row in metrics:
        assert {"task", "metric", "value", "n", "clusters", "ci95", "chance", "baselines"} <= set(row)
    for name in ("config.yaml", "environment.json", "metrics.csv", "report.html"):
        assert (one_step_run / name).stat().st_size > 0
    assert sorted(p.name for p in (one_step_run / "checkpoint").iterdir()) == [
        "README.md", "chat_template.jinja", "config.yaml", "lineage.json", "model.safetensors", "tokenizer.model",
    ]  # fmt: skip


def test_a_run_says_what_energy_it_took_and_that_an_estimate_is_one(one_step_run: Path) -> None:
    kept = json.loads((one_step_run / "energy.json").read_text())
    spent = energy.read(one_step_run)
    assert all(phase.total > 0 for phase in (spent.training, spent.validation, spent.evaluation, spent.generation))
    assert spent.generation.total < spent.evaluation.total
    assert kept["joules"] == pytest.approx(spent.training.total + spent.validation.total + spent.evaluation.total)
    assert kept["joules_per_sample"] == pytest.approx(spent.training.total / 128)  # a batch
    assert kept["joules_per_generated_token"] == pytest.approx(spent.generation.total / spent.generation.tokens)
    page = (one_step_run / "report.html").read_text()
    text = " ".join(Page(page).text.split())
    assert energy.amount(kept["joules"]) in text
    assert f"{energy.amount(kept['joules_per_sample'])} (of 128)" in text
    told = {"estimate": "Estimated, at least in part", "counter": "Read from the machine's own counters"}
    assert told[kept["how"]] in text
    for source in energy.sources(spent):
        assert " ".join(source.split()) in text


def test_a_tokenizer_with_more_pieces_than_the_decoder_knows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, error = fails([f"paths.run={tmp_path / 'run'}", "model.decoder.vocab=8000", *SMALL], capsys)
    assert status == 1
    assert error == "mmfusion: model.decoder.vocab=8000: data.tokenizer has 8192 pieces; set it to 8192\n"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optim.lrr=1", "optim.lrr: AdamW has no such argument; did you mean 'lr'?"),
        ("optim.lr=fast", "optim.lr: must be a valid number, not 'fast'"),
        ("optim.lr=nan", "optim.lr: must be a finite number"),
        ("steps=-1", "steps: must be greater than 0, not -1"),
        ("experiment=null", "a group is set to no name"),
        ("data.pipeline.patchify.audio=null", "data.pipeline.patchify.audio: must be a node with a _target_, not None"),
        ("modle=tiny", "modle: train has no such argument; did you mean 'model'?"),
        ("model=tinny", "model=tinny: no such option; did you mean 'tiny'?"),
        ("model.encoders.image.dept=3", "image.dept: ImageEncoder has no such argument; did you mean 'depth'?"),
        ("data.augment.image.flip=2.0", "data.augment.image.flip: must be less than or equal to 1"),
        ("experiment=quikstart", "experiment=quikstart: no such option; did you mean 'quickstart'?"),
        ("paths.rns=x", "paths.rns: Paths has no such argument; did you mean 'runs'?"),
        ("prompt=What's this?", "not of the form key=value"),
        ("resume=nowhere", "resume=nowhere: no run folder"),
        ("paths.runs=null", "paths.runs: must be a valid string, not None"),
        ("paths.run=5", "paths.run: must be a valid string, not 5"),
        ("~paths", "is taken from paths.run, which is not there; give "),
        ("name=", "name: must have at least 1 character, not ''"),
        ("name=${nothing}", "name: is taken from nothing, which is not there"),
        ("seed=4294967296", "seed: must be less than or equal to 4294967295"),
        ("optim.lr=-1", "optim: Invalid learning rate: -1"),
        ("trainer.max_steps=3", "trainer.max_steps: is given by steps; set that"),
        ("trainer._partial_=false", "trainer._partial_: must be true here"),
        ("callbacks.stop._partial_=true", "callbacks.stop._partial_: must be false here"),
        ("model._partial_=true", "model._partial_: must be false here"),
        ("data.limits.pixel=1", "data.limits.pixel: Limits has no such argument; did you mean 'pixels'?"),
        ("model.encoders.image.hub_token=x", "mmfusion: model.encoders.image.hub_token would stand in the check"),
        ("data.pipeline.row_length=${oc.env:HOME}", "mmfusion: data.pipeline.row_length would stand in the checkpoint"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_one_line_before_anything_is_opened(
    argument: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no data at all
    status, error = fails([argument], capsys)
    assert status == 2
    assert expected in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "objective.contrastive.pairs=[[image,video]]",
            "contrastive.pairs: names video, but batches hold image, audio",
        ),
        ("data.pipeline.text_pieces=0", "model.encoders.text: the data gives none"),
        ("~data.pipeline.patchify.audio", "model.encoders.audio: the data gives none"),
        ("name=" + "x" * 300, "cannot write there (File name too long)"),
    ],
)
def test_parts_that_do_not_fit_end_in_one_line_and_leave_no_folder(
    argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fails([argument, f"paths.runs={tmp_path / 'runs'}", "steps=1", *SMALL], capsys)
    assert status == 1
    assert expected in error
    assert not list(tmp_path.glob("runs/*"))


def test_a_missing_shard_ends_in_one_line_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "sample"
    shutil.copytree(SAMPLE, root)
    (root / "sonic-pi" / "sonic-pi-train.tar").unlink()
    status, error = fails([f"data.root={root}", f"paths.runs={tmp_path / 'runs'}", *SMALL], capsys)
    assert status == 1
    assert "sonic-pi-train.tar" in error
    assert not (tmp_path / "runs").exists()


def test_a_cut_shard_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "sample"
    shutil.copytree(SAMPLE, root)
    shard = root / "seglearn" / "seglearn-train.tar"
    shard.write_bytes(shard.read_bytes()[:100_000])
    status, error = fails([f"data.root={root}", f"paths.runs={tmp_path / 'runs'}", *SMALL], capsys)
    assert status == 1
    assert "seglearn-train.tar" in error


def test_an_unwritable_run_folder_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    status, error = fails([f"paths.runs={tmp_path / 'file'}", *SMALL], capsys)
    assert status == 1
    assert "cannot write there" in error
    assert "paths.runs=" in error


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("do not delete")
    status, error = fails([f"paths.run={tmp_path}", *SMALL], capsys)
    assert status == 1
    assert "is not empty" in error
    assert (tmp_path / "precious").read_text() == "do not delete"


def test_a_run_of_a_sweep_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    arguments = ["train", "-m", "data.batch_size=4,0", "steps=1", *SMALL[1:], f"paths.runs={tmp_path / 'runs'}"]
    status, out, error = Forked(as_typed, arguments, folder=tmp_path).ended()
    assert status == 2
    assert "done  " in out
    assert "failed (2)  " in out
    assert "data.batch_size: must be greater than 0, not 0" in error
    (report,) = tmp_path.glob("runs/quickstart/*/*/report.html")
    command = json.loads((report.parent / "environment.json").read_text())["command"]
    assert command.startswith("mmfusion train -m data.batch_size=4,0 ")
    assert not list(tmp_path.rglob("multirun.yaml"))


def test_help_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys\nfrom mmfusion.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'hydra', 'lightning', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "mmfusion train" in ended.stdout


@pytest.mark.slow  # 20 s: a hundred steps
def test_eight_samples_are_learnt_by_heart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "debug=overfit", "evaluation=none", "data.workers=0", f"paths.run={run}"]) == 0
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.01 < 1 < losses[0]


def test_an_empty_folder_that_was_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "mine", tmp_path / "mine" / "a" / "b"):
        status, _ = fails([f"paths.run={run}", "data.root=nowhere", *SMALL], capsys)
        assert status == 1
        assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_task_that_fails_leaves_the_trained_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    failing = ["+evaluation.bad._target_=math.sqrt", "+evaluation.bad._partial_=true"]
    status = main(["train", f"paths.run={run}", "steps=1", *SMALL, *failing])
    assert status == 1
    assert f"its checkpoint is {run / 'checkpoint'}" in capsys.readouterr().err
    assert (run / "checkpoint" / "model.safetensors").exists()


def test_a_sweep_keeps_no_secret_and_what_fails_at_once_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad, status in (("logger.csv.api_key=hunter2", 2), ("data.root=nowhere", 1)):
        assert main(["train", "-m", "seed=3", bad, f"paths.runs={tmp_path}", *SMALL]) == status
        assert list(tmp_path.iterdir()) == []
    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err
    assert told.out.count("logger.csv.api_key=***") == 2  # as each begins, and in the summary


def test_a_sweep_whose_choice_is_wrong_leaves_no_file_of_what_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra finds it after it has written down the command line."""
    assert main(["train", "-m", "model=tiny,tinny", "logger.csv.api_key=hunter2", f"paths.runs={tmp_path}"]) == 2
    assert "tinny" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_stopped_before_its_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmfusion.cli.launch.hydra.main", lambda **_: lambda job: interrupted)
    assert main(["train", "-m", "seed=0,1"]) == 130


@pytest.mark.parametrize("argument", ["resume=runs/x", "paths.run=x"])
def test_what_is_of_one_run_is_refused_with_a_sweep(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, error = fails(["-m", "seed=0,1", argument], capsys)
    assert status == 2
    assert "one run" in error


def test_the_way_on_can_be_copied() -> None:
    tree = {"model": {"_target_": "my_pkg.MyEncoder"}}
    expected = "mmfusion train 'resume=runs/my run' --allow my_pkg.MyEncoder --config-dir 'my conf'"
    assert launch._way_on(Path("runs/my run"), [], tree, Path("my conf")) == f"; go on with: {expected}"


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("embed RUN --out e.parquet a.png b.png", "files", ["a.png", "b.png"]),
        ("embed RUN a.png --out e.parquet -- -b.png", "files", ["a.png", "-b.png"]),
        ("runs best val/loss --n 3 FOLDER", "folder", "FOLDER"),
        ("compare A --out page.html B", "run_folders", ["A", "B"]),
        ("train seed=1 --config-dir conf steps=2", "overrides", ["seed=1", "steps=2"]),
    ],
)
def test_files_and_overrides_may_stand_behind_a_flag(
    command: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[argparse.Namespace] = []
    for verb in ("embed", "runs_best", "compare", "train"):
        monkeypatch.setattr(f"mmfusion.cli.{verb}.run", lambda options: asked.append(options) or 0)
    assert main(command.split()) == 0
    assert getattr(asked[0], key) == value


def test_only_the_command_itself_keeps_what_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called in a notebook, it must not keep the objects of the notebook."""
    monkeypatch.setattr(sys, "argv", ["mmfusion", "runs", "ls", str(tmp_path)])
    main(sys.argv[1:])
    with start.for_good():
        pass
    assert gc.get_freeze_count() == 0
    main()
    with start.for_good():
        pass
    try:
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
