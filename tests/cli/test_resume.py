"""`resume=`: the same weights, from good points only, and nothing trusted that came from elsewhere."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mmfusion import config, runs
from mmfusion.cli.asked import _root_of
from mmfusion.cli.main import main
from mmfusion.cli.resume import _check_places, resumed
from mmfusion.cli.settle import settled
from mmfusion.runs import energy
from mmfusion.types import Batch, Loss, Outputs
from tests.cli.trained import SAMPLE, SMALL, fails


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, with a resume point every two."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", f"paths.run={run}", "steps=6", "logger=[csv,tensorboard]", *SMALL]) == 0
    return run


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
    events: Any = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == steps
    before, after = (energy.read(folder) for folder in (whole, run))
    assert (before.training.samples, after.training.samples) == (6 * 8, 8 * 8)  # two steps were taken again
    assert after.training.total > before.training.total > 0
    assert after.sources == before.sources  # on the same machine


def test_a_run_whose_configuration_is_damaged(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for content in ("{", "paths: 3", ""):
        (tmp_path / "config.yaml").write_text(content)
        status, error = fails([f"resume={tmp_path}"], capsys)
        assert status == 2
        assert error.startswith(f"mmfusion: {tmp_path / 'config.yaml'}: not as training wrote it")


def test_a_finished_run_has_nothing_to_go_on_with(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={whole}"]) == 0
    assert "nothing to do" in capsys.readouterr().out


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
        (
            {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "mode": "online"},
            "logger.x.mode: may send this run's log away",
        ),
        (
            {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": True, "settings": {"mode": "online"}},
            "logger.x.settings.mode: may send this run's log away",
        ),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "../../x"}, "lies outside the run folder"),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "version": "/x"}, "lies outside the run folder"),
        ({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "~/x"}, "lies outside the run folder"),
        ({"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "sub_dir": "$HOME"}, "lies outside the run"),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "api_key": "***"}, "logger.x.api_key was not kept"),
    ],
)
def test_a_run_folder_sends_nothing_and_writes_nowhere_else(
    logger: dict[str, object], told: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((whole / "config.yaml").read_text().replace(str(whole), str(tmp_path)))
    tree["logger"] = {"x": logger}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    status, error = fails([f"resume={tmp_path}"], capsys)
    assert status == 2
    assert told in error


def test_a_run_folder_names_no_file_outside_itself(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiler = {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": str(tmp_path), "filename": "../x"}
    for key, name, value in (("callbacks", "best", {"filename": "../../x"}), ("trainer", "profiler", profiler)):
        tree = yaml.safe_load((whole / "config.yaml").read_text().replace(str(whole), str(tmp_path)))
        tree[key][name] = {**tree[key].get(name, {}), **value}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        status, error = fails([f"resume={tmp_path}"], capsys)
        assert status == 2
        assert f"{key}.{name}.filename: {value['filename']} lies outside the run folder" in error


def test_our_own_loggers_go_on_without_being_named_again(tmp_path: Path) -> None:
    composed = config.compose(["logger=[csv,tensorboard,wandb]", f"paths.run={tmp_path}", "paths.id=x"])
    _check_places(config.printable(composed), tmp_path, ())


def test_a_run_whose_shards_a_variable_names_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMFUSION_SAMPLE", str(SAMPLE))
    composed = config.compose(["data.root=${oc.env:MMFUSION_SAMPLE}", f"paths.run={tmp_path}", "paths.id=x"])
    settled(composed)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.printable(composed)))
    tree = settled(resumed(tmp_path, []))
    assert (tree["data"]["root"], _root_of(tmp_path)) == (str(SAMPLE), SAMPLE)


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


class Noisy(nn.Module):
    """An objective of its own with all that depends on more than weights and batch: dropout and running statistics."""

    modalities = ("image",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(192, affine=False), nn.Dropout(0.5))

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return len(batch.streams["image"].owner)

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        return {"noisy": Loss(self.layers(outputs.embeddings["image"]).square().sum(), self.count(batch))}


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of four steps that gets worse and meets holes, and the same gone on with from its middle elsewhere."""
    folder = tmp_path_factory.mktemp("moved")
    first, whole, run = (folder / name for name in ("first", "whole", "run"))
    worse = ["steps=4", "keep=best", "optim.lr=1.0", "scheduler=constant", "trainer.val_check_interval=1",
             "trainer.limit_val_batches=1", "trainer.log_every_n_steps=2", "data.max_skipped_fraction=1.0",
             "data.limits.audio_s=0.1"]  # fmt: skip
    assert main(["train", f"paths.run={first}", *SMALL, *worse, f"+objective.noisy._target_={__name__}.Noisy"]) == 0
    shutil.copytree(first, run)
    first.rename(whole)
    shutil.rmtree(run / "checkpoint")
    (run / "report.html").unlink()
    (run / "resume" / "step=4.ckpt").unlink()
    assert main(["train", f"resume={run}", "--allow", f"{__name__}.Noisy"]) == 0
    return whole, run


def last_point(run: Path) -> dict[str, Any]:
    return torch.load(run / "resume" / "step=4.ckpt", weights_only=True)


def test_moved_amid_training_it_keeps_the_best_of_all_its_weights(gone_on: tuple[Path, Path]) -> None:
    assert [point.name for point in (gone_on[1] / "resume").glob("best-*")] == ["best-step=1.ckpt"]
    best, kept = (load_file(run / "checkpoint" / "model.safetensors") for run in gone_on)
    assert all(torch.equal(kept[name], best[name]) for name in best)


def test_gone_on_with_own_code_draws_the_same_numbers_and_keeps_the_same_statistics(gone_on: tuple[Path, Path]) -> None:
    whole, run = (last_point(folder)["state_dict"] for folder in gone_on)
    assert all(torch.equal(run[name], whole[name]) for name in whole)
    assert whole["objectives.noisy.layers.0.num_batches_tracked"] == 4


def test_gone_on_with_every_sample_is_counted_once(gone_on: tuple[Path, Path]) -> None:
    whole, run = (last_point(folder)["DataModule"] for folder in gone_on)
    assert whole["seen"] == 4 * 8
    assert sum(whole["skipped"].values()) > 0
    assert run == whole
    before = torch.load(gone_on[0] / "resume" / "step=2.ckpt", weights_only=True)["DataModule"]
    assert before["seen"] == 2 * 8
