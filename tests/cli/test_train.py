"""`mmfusion train` on the embedded sample: a run and what it leaves, resuming, and what each fault ends in."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from mmfusion import runs
from mmfusion.cli.main import main
from mmfusion.types import DataError

SMALL = ["data.batch_size=8", "data.workers=0", "evaluation=none", "callbacks.resume.every_n_train_steps=2",
         "trainer.log_every_n_steps=1"]  # fmt: skip
SAMPLE = Path("data_prep/sample")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with a resume point every two."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", f"paths.run={run}", "steps=6", *SMALL]) == 0
    return run


def test_one_step_goes_through_everything(one_step_run: Path) -> None:
    metrics = json.loads((one_step_run / "metrics.json").read_text())
    assert {row["task"] for row in metrics} >= {"picture_to_name", "spoken_to_picture", "sound_kind", "watch_exercise"}
    for row in metrics:
        assert {"task", "metric", "value", "n", "clusters", "ci95", "chance", "baselines"} <= set(row)
    for name in ("config.yaml", "environment.json", "metrics.csv", "report.html"):
        assert (one_step_run / name).stat().st_size > 0
    assert sorted(p.name for p in (one_step_run / "checkpoint").iterdir()) == [
        "README.md", "config.yaml", "lineage.json", "model.safetensors", "tokenizer.model",
    ]  # fmt: skip


def test_same_seed_same_weights_and_resume_from_an_older_point(whole: Path, tmp_path: Path) -> None:
    expected = load_file(whole / "checkpoint" / "model.safetensors")
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoint")
    (run / "report.html").unlink()
    (run / "resume" / "step=6.ckpt").write_bytes(b"damaged")
    assert main(["train", f"resume={run}"]) == 0
    resumed = load_file(run / "checkpoint" / "model.safetensors")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    newest, before, *_ = map(runs.step_of, runs.resume_points(run))
    assert (newest, before) == (6, 4)  # the damaged one was replaced
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [0, 1, 2, 3, 4, 5]


def process(*arguments: str) -> subprocess.Popen[str]:
    """Training in a process group of its own."""
    command = [sys.executable, "-m", "mmfusion.cli.main", "train", *arguments]

    def alone() -> None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=alone)


def stopped(training: subprocess.Popen[str], run: Path, after: int, how: signal.Signals) -> tuple[int, str]:
    """Signal it and its workers once a point of `after` steps or more is there: exit status and its last line."""
    while training.poll() is None and all(runs.step_of(p) < after for p in runs.resume_points(run)):
        time.sleep(0.01)
    os.killpg(training.pid, how)
    _, error = training.communicate(timeout=60)
    return training.returncode, error.strip().splitlines()[-1]


@pytest.mark.slow  # three processes that train
def test_asked_to_stop_twice_and_gone_on_with_it_ends_in_the_same_weights(tmp_path: Path) -> None:
    """SIGTERM, then Ctrl-C, in real processes with two workers each."""
    small = ["steps=40", *SMALL, "data.workers=2"]
    assert main(["train", f"paths.run={tmp_path / 'whole'}", *small]) == 0
    run = tmp_path / "run"
    advice = f"stopped; go on with: mmfusion train resume={run}"
    assert stopped(process(f"paths.run={run}", *small), run, 2, signal.SIGTERM) == (143, advice)
    assert stopped(process(f"resume={run}"), run, 12, signal.SIGINT) == (130, advice)
    assert main(["train", f"resume={run}"]) == 0
    weights = [load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


class Disturbance(Callback):
    """Once in a process, at the start of micro-batch `batch`: `signals`, or an error where there are none."""

    done = False

    def __init__(self, batch: int, signals: Sequence[int] = ()) -> None:
        self.batch, self.signals = batch, signals

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if batch_idx == self.batch and not Disturbance.done:
            Disturbance.done = True
            for number in self.signals:
                signal.raise_signal(signal.Signals(number))
            if not self.signals:
                raise DataError("no more")


ACCUMULATED = ["steps=4", "trainer.accumulate_grad_batches=2", *SMALL, "callbacks.resume.every_n_train_steps=50",
               "trainer.val_check_interval=4", "trainer.limit_val_batches=1"]  # fmt: skip


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that four steps of two micro-batches end in."""
    run = tmp_path_factory.mktemp("runs") / "accumulated"
    assert main(["train", f"paths.run={run}", *ACCUMULATED]) == 0
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.mark.parametrize(
    ("batch", "signals", "status", "left"),
    [
        (5, [signal.SIGTERM], 143, 3),  # inside a step, which is ended first
        (5, [signal.SIGINT], 130, 3),
        (5, [signal.SIGTERM, signal.SIGTERM], 143, 2),  # at once: the step begins again when the run goes on
        (5, [], 1, 2),
    ],
)
def test_stopped_inside_a_step_of_two_batches_it_goes_on_to_the_same_weights(
    batch: int,
    signals: list[int],
    status: int,
    left: int,
    accumulated: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, disturbance = tmp_path / "run", f"{__name__}.Disturbance"
    disturbed = [f"+callbacks.x._target_={disturbance}", f"+callbacks.x.batch={batch}"]
    disturbed += [f"+callbacks.x.signals={[int(number) for number in signals]}"]
    monkeypatch.setattr(Disturbance, "done", False)
    assert main(["train", f"paths.run={run}", *ACCUMULATED, *disturbed]) == status
    assert [runs.step_of(point) for point in runs.resume_points(run)] == [left]
    assert main(["train", f"resume={run}", "--allow", disturbance]) == 0
    weights = load_file(run / "checkpoint" / "model.safetensors")
    assert all(torch.equal(weights[name], accumulated[name]) for name in accumulated)
    if left == 3:  # stopped at once, right behind a validation, Lightning counts the steps in its log one too far
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows if row["train/loss"]] == [str(step) for step in range(4)]
        assert [row["step"] for row in rows if row["val/loss"]] == ["1", "3"]


def test_a_run_whose_configuration_is_damaged(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for content in ("{", "paths: 3", ""):
        (tmp_path / "config.yaml").write_text(content)
        status, error = fails([f"resume={tmp_path}"], capsys)
        assert status == 2
        assert error.startswith(f"mmfusion: {tmp_path / 'config.yaml'}: not as training wrote it")


def test_stopped_before_the_first_step_it_leaves_nothing(tmp_path: Path) -> None:
    training = process(f"paths.run={tmp_path / 'run'}", *SMALL)
    assert training.stdout is not None
    assert training.stdout.readline().startswith("run folder")
    training.send_signal(signal.SIGINT)
    _, error = training.communicate(timeout=60)
    assert (training.returncode, error.strip().splitlines()[-1]) == (130, "stopped before the first step")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_pieces_than_the_decoder_knows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, error = fails([f"paths.run={tmp_path / 'run'}", "model.decoder.vocab=8000", *SMALL], capsys)
    assert status == 1
    assert error == "mmfusion: model.decoder.vocab=8000: data.tokenizer has 8192 pieces; set it to 8192\n"


def test_a_finished_run_has_nothing_to_go_on_with(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={whole}"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["train", *arguments])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    return status, error


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
        ("optim.lr=1", "optim.lr: cannot change when a run goes on"),
        ("paths.run=elsewhere", "paths.run: cannot change when a run goes on"),
        ("logger=[1", "logger=[1: not of the form key=value"),
    ],
)
def test_what_changes_results_cannot_change_when_a_run_goes_on(
    argument: str, expected: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = fails([f"resume={whole}", argument], capsys)
    assert status == 2
    assert expected in error


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
    command = [sys.executable, "-m", "mmfusion.cli.main", "train", "-m", "data.batch_size=4,0", "steps=1", *SMALL[1:]]
    ended = subprocess.run([*command, f"paths.runs={tmp_path}"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "done  " in ended.stdout
    assert "failed (2)  " in ended.stdout
    assert "data.batch_size: must be greater than 0, not 0" in ended.stderr
    assert len(list(tmp_path.glob("quickstart/*/*/report.html"))) == 1


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


def test_a_run_folder_builds_no_class_of_another_package(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (
        "setuptools._distutils.spawn.spawn",
        "torch.optim.optimizer.torch.load",  # another package's, through one of ours
        "mmfusion.runs.discard",  # ours, but nothing that a configuration names
    ):
        tree = yaml.safe_load((whole / "config.yaml").read_text())
        tree["callbacks"]["x"] = {"_target_": target, "cmd": ["touch", str(tmp_path / "ran")]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        status, error = fails([f"resume={tmp_path}"], capsys)
        assert status == 2
        assert f"callbacks.x._target_: {target!r} is not built from a run folder" in error
        assert not (tmp_path / "ran").exists()


def test_a_run_folder_hides_no_class_behind_an_interpolation(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spawn = f"{{_target_: setuptools._distutils.spawn.spawn, cmd: [touch, {tmp_path / 'ran'}]}}"
    for hidden in (f'${{oc.decode:"{spawn}"}}', f"${{oc.env:HOME,${{oc.decode:'{spawn}'}}}}", "${model}"):
        tree = yaml.safe_load((whole / "config.yaml").read_text())
        tree["evaluation"] = {"x": hidden}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        status, error = fails([f"resume={tmp_path}"], capsys)
        assert status == 2
        assert "evaluation.x: " in error
        assert "is not resolved" in error
        assert not (tmp_path / "ran").exists()


def test_a_moved_run_folder_names_no_other_class(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder named like a class, in the place of a path that is named like one of ours."""
    monkeypatch.chdir(tmp_path)
    folder = Path("setuptools._distutils.spawn.spawn")
    folder.mkdir()
    tree = yaml.safe_load((whole / "config.yaml").read_text())
    tree["paths"]["run"] = "mmfusion.evaluation.pictures.captions"
    tree["evaluation"]["x"] = {"_target_": "mmfusion.evaluation.pictures.captions", "cmd": ["touch", "ran"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    status = main(["train", f"resume={folder}"])
    assert status == 2
    assert "lies outside the run folder" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("logger", "told"),
    [
        ({"_target_": "lightning.pytorch.loggers.WandbLogger"}, "logger.x.offline: this run sends its log away"),
        ({"_target_": "lightning.pytorch.loggers.MLFlowLogger"}, "--allow lightning.pytorch.loggers.MLFlowLogger"),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/somewhere"}, "lies outside the run folder"),
    ],
)
def test_a_run_folder_sends_nothing_and_writes_nowhere_else(
    logger: dict[str, str], told: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((whole / "config.yaml").read_text().replace(str(whole), str(tmp_path)))
    tree["logger"] = {"x": logger}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    status, error = fails([f"resume={tmp_path}"], capsys)
    assert status == 2
    assert told in error


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


def test_a_resume_point_with_other_bytes_is_passed_over(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole / "resume", run / "resume")
    shutil.copy(whole / "config.yaml", run)
    newest, before, *_ = runs.resume_points(run)
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    newest.write_bytes(content)
    assert runs.newest_good(run) == before


def test_data_that_changed_since_the_run_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "sample", tmp_path / "run"
    shutil.copytree(SAMPLE, data)
    assert main(["train", f"paths.run={run}", f"data.root={data}", "steps=4", *SMALL]) == 0
    (run / "report.html").unlink()
    (data / "manifest.json").write_text((data / "manifest.json").read_text() + " ")
    capsys.readouterr()
    status, error = fails([f"resume={run}"], capsys)
    assert status == 1
    assert error.startswith(f"mmfusion: data.root: {data} is not what this run began with")
