"""What makes training bearable: each is one override, and does what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from mmfusion import runs
from mmfusion.cli.main import main
from mmfusion.report.curves import read_history
from tests.cli.trained import as_typed
from tests.forked import Forked

SMALL = ["data.batch_size=8", "data.workers=0", "evaluation=none", "trainer.log_every_n_steps=1",
         "trainer.limit_val_batches=1"]  # fmt: skip


def train(run: Path, *overrides: str) -> int:
    """Without measuring speed, which takes as long as a few such steps."""
    return main(["train", f"paths.run={run}", *SMALL, "~callbacks.speed", *overrides])


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "parent"
    assert train(run, "steps=2") == 0
    return run


def test_a_new_run_begins_with_a_checkpoints_weights_and_names_it_as_its_parent(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "steps=1", f"checkpoint={parent}", "optim.lr=1e-12", "optim.weight_decay=0") == 0
    before, after = weights(parent), weights(run)
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    (named,) = json.loads((run / "checkpoint" / "lineage.json").read_text())["parents"]
    assert (
        named["sha256"]
        == json.loads((parent / "checkpoint" / "lineage.json").read_text())["files"]["model.safetensors"]
    )


def test_frozen_encoders_stay_and_the_rest_learns(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "experiment=frozen_encoders", "steps=1", f"checkpoint={parent}") == 0
    before, after = weights(parent), weights(run)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fusion", "decoder"}


def test_a_checkpoint_of_another_model_or_vocabulary_is_refused_before_anything_is_made(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "a", "steps=1", f"checkpoint={parent}", "model.decoder.depth=2") == 1
    assert "model.decoder.depth is 1 there and 2 here" in capsys.readouterr().err
    other = tmp_path / "tokenizer.model"
    shutil.copy("data_prep/sample/tokenizer/tokenizer.model", other)
    with other.open("ab") as file:
        file.write(b"\x00")
    assert train(tmp_path / "a", "steps=1", f"checkpoint={parent}", f"data.tokenizer={other}") == 1
    assert "has another vocabulary" in capsys.readouterr().err
    assert train(tmp_path / "a", "steps=1", f"checkpoint={tmp_path / 'none'}") == 1
    assert "no such folder" in capsys.readouterr().err
    assert train(tmp_path / "a", "experiment=frozen_encoders") == 2
    assert "checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_averaged_weights_resume_to_the_same_bits(tmp_path: Path) -> None:
    points = ["steps=4", "callbacks=[default,ema]", "callbacks.resume.every_n_train_steps=2", "callbacks.ema.decay=0.5"]
    assert train(tmp_path / "whole", *points) == 0
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    (run / "report.html").unlink()
    (run / "resume" / "step=4.ckpt").unlink()
    assert main(["train", f"resume={run}"]) == 0
    whole, gone_on = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(whole[name], gone_on[name]) for name in whole)
    assert train(tmp_path / "plain", "steps=4") == 0
    assert not all(torch.equal(whole[name], tensor) for name, tensor in weights(tmp_path / "plain").items())


def test_averaged_weights_that_would_not_be_kept_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "steps=1", "callbacks=[ema,default]") == 2
    told = capsys.readouterr().err
    assert "callbacks.best.save_weights_only: true saves the weights without the average of callbacks.ema" in told
    assert "callbacks=[default,ema]" in told
    assert not (tmp_path / "run").exists()


def test_it_stops_early_and_keeps_as_many_of_the_best_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stop = ["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2",
            "callbacks.early_stopping.min_delta=1000.0"]  # fmt: skip
    assert train(run, "steps=9", "trainer.val_check_interval=1", "callbacks.best.save_top_k=2", *stop) == 0
    assert "trained 3 steps" in capsys.readouterr().out
    assert len(list((run / "resume").glob("best-*.ckpt"))) == 2
    assert runs.step_of(runs.resume_points(run)[0]) == 3  # the last point is the run's end


def test_a_point_stands_for_a_step_with_its_validation_and_an_early_end_stays_the_end(tmp_path: Path) -> None:
    """Gone on with from the point at which a validation was due, and from the end that early stopping made."""
    stops = ["steps=9", "trainer.val_check_interval=2", "callbacks.resume.every_n_train_steps=2",
             "callbacks.resume.save_top_k=-1", "callbacks=[default,early_stopping]",
             "callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=1000.0"]  # fmt: skip
    assert train(tmp_path / "whole", *stops) == 0
    for last in (2, 6):
        run = tmp_path / str(last)
        shutil.copytree(tmp_path / "whole", run)
        shutil.rmtree(run / "checkpoint")
        (run / "report.html").unlink()
        for point in runs.resume_points(run):
            if runs.step_of(point) > last:
                point.unlink()
        assert main(["train", f"resume={run}"]) == 0
        assert runs.step_of(runs.resume_points(run)[0]) == 6
        assert all(torch.equal(weights(run)[n], tensor) for n, tensor in weights(tmp_path / "whole").items())
        gone_on, whole = (read_history(folder / "metrics.csv") for folder in (run, tmp_path / "whole"))
        for name in ("val/loss", "train/loss", "health/grad_norm", "val/captioning"):
            assert [part.tolist() for part in gone_on[name]] == [part.tolist() for part in whole[name]]


def test_trained_and_moved_but_never_evaluated_it_ends_with_its_best_weights(tmp_path: Path) -> None:
    """Killed in its evaluation, where nothing is left to train and the last step was not validated."""
    assert train(tmp_path / "whole", "steps=3", "trainer.val_check_interval=2", "keep=best") == 0
    run = tmp_path / "moved" / "run"
    shutil.copytree(tmp_path / "whole", run)
    shutil.rmtree(run / "checkpoint")
    (run / "report.html").unlink()
    shutil.move(tmp_path / "whole", tmp_path / "elsewhere")
    assert main(["train", f"resume={run}"]) == 0
    assert all(torch.equal(weights(run)[n], tensor) for n, tensor in weights(tmp_path / "elsewhere").items())


def test_early_stopping_without_a_validation_split_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("data_prep/sample", tmp_path / "sample")
    manifest = tmp_path / "sample" / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["shards"] = [shard for shard in listed["shards"] if shard["split"] != "validation"]
    manifest.write_text(json.dumps(listed))
    watching = [f"data.root={tmp_path / 'sample'}", "callbacks=[default,early_stopping]", "steps=1"]
    assert train(tmp_path / "run", *watching) == 1
    assert "has no validation split" in capsys.readouterr().err


def test_accumulated_batches_are_told_as_one_step(tmp_path: Path) -> None:
    told = []
    for batches in (1, 2):
        run = tmp_path / str(batches)
        one = ["steps=1", "objective=[captioning]", f"trainer.accumulate_grad_batches={batches}"]
        assert train(run, *one) == 0
        told.append(read_history(run / "metrics.csv"))
    whole, halves = told
    for name in ("train/loss", "train/captioning", "train/captioning/emoji-google"):
        assert halves[name][0].tolist() == [0]
        assert halves[name][1].tolist() == pytest.approx(whole[name][1].tolist(), rel=1e-5)
    assert whole["train/loss"][1][0] == pytest.approx(whole["train/captioning"][1][0], rel=1e-5)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_best_weights_are_those_that_were_validated(
    averaged: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    worse = [
        "steps=3",
        "trainer.val_check_interval=1",
        "optim.lr=0.3",
        "scheduler=constant",
        "scheduler.warmup_steps=0",
    ]
    ema = ["callbacks=[default,ema]", "callbacks.ema.decay=0.5"] if averaged else []
    assert train(run, *worse, *ema) == 0
    assert "keep=best keeps those weights" in capsys.readouterr().out
    assert train(tmp_path / "best", *worse, *ema, "keep=best") == 0
    assert "kept the weights of step 1" in capsys.readouterr().out
    assert train(tmp_path / "one", *worse, *ema, "steps=1") == 0
    one, best = weights(tmp_path / "one"), weights(tmp_path / "best")
    assert all(torch.equal(one[name], best[name]) for name in one)


def test_the_rate_finder_suggests_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(run, "debug=find_lr", "callbacks.find_lr.steps=22", "data.batch_size=4") == 0
    lines = (run / "lr_find.csv").read_text().splitlines()
    assert lines[0] == "lr,loss"
    rates = [float(line.split(",")[0]) for line in lines[1:]]
    assert len(rates) >= 20
    assert rates == sorted(rates)
    assert (run / "lr_find.png").stat().st_size > 0
    assert not (run / "checkpoint").exists()
    assert not list(run.glob("**/*.ckpt"))
    assert "optim.lr=" in capsys.readouterr().out or "no rate stands out" in capsys.readouterr().out


def test_nothing_is_logged_where_that_is_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "steps=1", "trainer.log_every_n_steps=0") == 0
    assert (run / "report.html").is_file()
    assert "train/loss" not in read_history(run / "metrics.csv")


def test_half_precision_accumulation_recomputation_and_layer_decay_together(tmp_path: Path) -> None:
    together = ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "gradient_checkpointing=true",
                "parameters.layer_decay=0.8", "parameters.lr.decoder=0.5", "trainer.gradient_clip_val=0.5"]  # fmt: skip
    assert train(tmp_path / "run", "steps=1", "data.batch_size=2", *together) == 0


SECRET = "hunter2-very-secret"


def test_every_logger_gets_the_same_names_and_the_exhibits_and_no_secret_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("MY_KEY", SECRET)
    run = tmp_path / "run"
    loud = ["logger=[csv,tensorboard,wandb]", "callbacks.exhibit.every_n=1", "trainer.val_check_interval=2",
            "logger.wandb.notes=${oc.env:MY_KEY}"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["mmfusion", "train", "logger.wandb.api_key=" + SECRET, *loud])
    given = [f"paths.run={run}", *SMALL, "steps=2", *(o for o in loud if "notes" not in o)]
    assert main(["train", *given]) == 0

    history = read_history(run / "metrics.csv")
    events: Any = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) - {"epoch"} == set(history)
    for name in ("train/loss", "val/loss", "health/grad_norm", "health/padding/image", "health/rank/text",
                 "speed/peak_share", "speed/forward_s", "train/captioning/emoji-google", "val/captioning"):  # fmt: skip
        assert name in history
    seen = [event.value for event in events.Scalars("train/loss")]
    assert seen == pytest.approx(history["train/loss"][1].tolist(), rel=1e-5)
    shown = {tag.split("/")[1] for tag in (*tags["images"], *tags["audio"])}
    assert shown == {"emoji-google", "tux-stamps", "sonic-pi", "seglearn"}
    assert any(tag.endswith("audio/text_summary") for tag in tags["tensors"])
    (folder,) = (run / "media").iterdir()
    captions = (folder / "captions.csv").read_text().splitlines()
    assert captions[0] == "key,source,type,file,text,said"
    assert len(captions) - 1 == len(list(folder.glob("*.png"))) + len(list(folder.glob("*.wav")))
    assert list(run.glob("wandb/offline-run-*/files/media/**/*.wav"))
    for file in (path for path in run.rglob("*") if path.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.timeout(1800)
def test_compiled_it_takes_the_same_steps(tmp_path: Path) -> None:
    assert train(tmp_path / "false", "steps=2") == 0
    compiling = ["train", f"paths.run={tmp_path / 'true'}", *SMALL, "~callbacks.speed", "steps=2", "compile=true"]
    # in a process of its own: the compiler's threads forbid forks of the one it ran in
    assert Forked(as_typed, compiling, folder=tmp_path).ended(1800)[0] == 0
    compiled, eager = (read_history(tmp_path / name / "metrics.csv")["train/loss"][1] for name in ("true", "false"))
    assert compiled == pytest.approx(eager, rel=1e-4)
    after = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert after[0].keys() == after[1].keys()
    assert all(torch.allclose(after[0][name], after[1][name], atol=2e-3) for name in after[1])


@pytest.mark.gpu
def test_on_a_gpu_the_exhibit_is_shown_at_a_validation(tmp_path: Path) -> None:
    on_it = ["trainer.accelerator=gpu", "callbacks.exhibit.every_n=1", "trainer.val_check_interval=2"]
    assert train(tmp_path / "run", "steps=2", *on_it) == 0
    assert list((tmp_path / "run" / "media").glob("step=*/captions.csv"))
