"""From a pretrained model to one that answers, then answers better: what each stage leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmfusion
from data_prep import checks, conversations, preferences
from mmfusion.checkpoint import CheckpointError
from mmfusion.checkpoint.layout import sha256
from mmfusion.checkpoint.weights import once
from mmfusion.cli.main import main
from mmfusion.converters import lora
from mmfusion.report.curves import read_history
from tests.cli.trained import SMALL, fails

SHORT = ["steps=2", *SMALL, "trainer.val_check_interval=2", "trainer.limit_val_batches=1"]


def pairs_in(folder: Path) -> list[str]:
    return [f"data.root={folder / 'preferences'}", "data.weights=null"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def folder(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checks`, `conversations` and `preferences` about few samples."""
    made = tmp_path_factory.mktemp("made")
    for script in (checks, conversations, preferences):
        script.prepare(made / script.__name__.rpartition(".")[2], few)
    return made


@pytest.fixture(scope="module")
def answering(one_step_run: Path, folder: Path) -> Path:
    run = folder / "answering"
    given = [f"checkpoint={one_step_run}", f"data.root={folder / 'conversations'}", f"paths.run={run}"]
    assert main(["train", "stage=finetune", *given, *SHORT]) == 0
    return run


def test_earlier_stages_are_asked_again(one_step_run: Path, folder: Path, few: Path, tmp_path: Path) -> None:
    given = [f"checkpoint={one_step_run}", f"data.root={folder / 'conversations'}", f"paths.run={tmp_path / 'run'}"]
    small = [option for option in SHORT if option != "evaluation=none"] + ["evaluation.answers.limit=2"]
    tasks = [f"earlier.pretrain.root={few}", "~earlier.pretrain.tasks.by_modality", "~earlier.pretrain.tasks.captions"]
    assert main(["train", "stage=finetune", *given, *small, *tasks]) == 0
    rows = json.loads((tmp_path / "run" / "earlier.json").read_text())
    assert {row["task"] for row in rows} >= {"picture_to_name", "sound_kind", "watch_exercise"}
    assert [row["checkpoint"] for row in rows if row["task"] == "sound_kind"] == ["before", "after"]
    assert {row["stage"] for row in rows} == {"pretrain"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Before and after" in page
    assert page.count('data-name="Before"') == len(rows) / 2


def test_an_earlier_stage_whose_shards_are_gone_is_named(
    one_step_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"checkpoint={one_step_run}", f"data.root={folder / 'conversations'}", f"paths.run={tmp_path / 'run'}"]
    small = [option for option in SHORT if option != "evaluation=none"] + ["evaluation.answers.limit=2"]
    assert main(["train", "stage=finetune", *given, *small, f"earlier.pretrain.root={tmp_path / 'gone'}"]) == 0
    assert f"what stage pretrain was asked is left out: {tmp_path / 'gone'}: no such folder" in capsys.readouterr().out
    assert not (tmp_path / "run" / "earlier.json").exists()


@pytest.fixture(scope="module")
def preferring(answering: Path, folder: Path) -> Path:
    run = folder / "preferring"
    given = [f"checkpoint={answering}", *pairs_in(folder), f"paths.run={run}"]
    how = ["optim.lr=0.05", "scheduler=constant", "objective.dpo.loss.anchor=0.0"]
    assert main(["train", "stage=preference", *given, *SHORT, *how]) == 0
    return run


def test_each_stage_names_its_parent_and_itself(one_step_run: Path, answering: Path, preferring: Path) -> None:
    lines = [json.loads((run / "checkpoint" / "lineage.json").read_text()) for run in (answering, preferring)]
    assert [line["stage"] for line in lines] == ["finetune", "preference"]
    for line, parent in zip(lines, (one_step_run, answering), strict=True):
        own = json.loads((parent / "checkpoint" / "lineage.json").read_text())["files"]["model.safetensors"]
        assert line["parents"] == [{"name": str(parent / "checkpoint"), "sha256": own}]
    assert lines[0]["data"]["fingerprint"] != lines[1]["data"]["fingerprint"]


def test_adapters_are_trained_beside_weights_that_stay(answering: Path, preferring: Path) -> None:
    before, after = weights(answering), weights(preferring)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(preferring / "checkpoint" / "adapter" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    assert lora.names(mmfusion.load(preferring).network) == [lora.DEFAULT]


@pytest.mark.parametrize(
    ("stage", "objective", "converter"),
    [
        ("preference", "dpo", "[lora]"),  # the reference is the model without adapters, or a copy
        ("preference", "dpo", "[qlora]"),
        ("preference", "dpo", "[]"),
        ("preference", "kto", "[lora]"),
        ("reward", "reward", "[lora]"),
    ],
)
def test_a_step_of_pairs_is_counted_before_it_is_taken(
    stage: str, objective: str, converter: str, answering: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        f"checkpoint={answering}",
        f"data.root={folder / 'preferences'}",
        "data.weights=null",
        f"converter={converter}",
    ]
    assert main(["plan", f"stage={stage}", f"objective=[{objective}]", *given]) == 0
    assert f"objective.{objective}" in capsys.readouterr().out


@pytest.mark.parametrize("start", [0, 1])
def test_a_reference_is_rounded_when_the_model_is(start: int, answering: Path, folder: Path, tmp_path: Path) -> None:
    """Of a model that does not learn, its reference thinks what it thinks itself: a divergence of zero."""
    run = tmp_path / "run"
    given = [f"checkpoint={answering}", *pairs_in(folder), f"paths.run={run}", "converter=[int4]"]
    how = [f"converter.int4.start={start}", "optim.lr=0", "optim.weight_decay=0"]
    assert main(["train", "stage=preference", *given, *SHORT, *how]) == 0
    _, divergence = read_history(run / "metrics.csv")["train/preference/kl"]
    assert divergence == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_or_missing_adapter_is_named(preferring: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(preferring / "checkpoint", tmp_path / "copy")
    file = copy / "adapter" / name
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    with pytest.raises(CheckpointError, match=rf"{name}: changed since it was saved"):
        mmfusion.load(copy)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        mmfusion.load(copy)


def test_an_adapter_that_the_checkpoint_does_not_list_is_not_loaded(
    answering: Path, preferring: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(answering / "checkpoint", tmp_path / "copy")
    shutil.copytree(preferring / "checkpoint" / "adapter", copy / "adapter")
    with pytest.raises(CheckpointError, match="is not listed in lineage"):
        mmfusion.load(copy)


def test_it_goes_on_only_with_the_checkpoint_that_it_began_with(
    answering: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rerun of the parent put other weights there: another reference, silently."""
    parent = shutil.copytree(answering / "checkpoint", tmp_path / "parent")
    run = tmp_path / "run"
    given = [
        f"checkpoint={parent}",
        f"data.root={folder / 'preferences'}",
        "data.weights=null",
        f"paths.run={run}",
        "converter=[]",
    ]
    assert main(["train", "stage=preference", *given, *SMALL, "steps=4", "trainer.limit_val_batches=1"]) == 0
    (run / "report.html").unlink()
    shutil.rmtree(run / "checkpoint")
    (run / "resume" / "step=4.ckpt").unlink()
    shutil.rmtree(parent)
    moved = shutil.copytree(answering / "checkpoint", parent)
    tensors = load_file(moved / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, moved / "model.safetensors")
    lineage = json.loads((moved / "lineage.json").read_text())
    lineage["files"]["model.safetensors"] = sha256(moved / "model.safetensors")
    (moved / "lineage.json").write_text(json.dumps(lineage))
    status, told = fails([f"resume={run}"], capsys)
    assert status == 1
    assert "checkpoint: is not the one that this run began with" in told


def test_what_is_preferred_is_told_by_kind_of_pair(preferring: Path) -> None:
    history = read_history(preferring / "metrics.csv")
    assert history["train/preference"][1][0] == pytest.approx(0.6931, abs=1e-3)  # the reference is the model itself
    assert history["train/preference/margin"][1][0] == pytest.approx(0, abs=1e-4)
    told = {name for name in history if name.startswith(("train/preference/", "val/preference/"))}
    for name in ("accuracy", "margin", "chosen", "rejected", "chosen_pieces", "rejected_pieces", "kl"):
        assert {f"train/preference/{name}", f"val/preference/{name}"} <= told
    assert any(name.startswith("val/preference/accuracy/") for name in told)


@pytest.fixture(scope="module")
def judging(answering: Path, folder: Path) -> Path:
    run = folder / "judging"
    given = [f"checkpoint={answering}", *pairs_in(folder), f"paths.run={run}"]
    small = [option for option in SHORT if option != "evaluation=none"]
    assert main(["train", "stage=reward", *given, *small, "objective.reward.margin=0.5"]) == 0
    return run


def test_a_reward_model_is_asked_for_rewards_by_kind_of_pair(judging: Path) -> None:
    metrics = json.loads((judging / "metrics.json").read_text())
    assert {row["task"] for row in metrics} == {"rewarded"}
    total, *by_kind = metrics
    assert total["metric"] == "all pairs, right"
    assert total["n"] == sum(row["n"] for row in by_kind)
    assert sum(row["n"] * row["value"] for row in by_kind) == pytest.approx(total["n"] * total["value"])
    history = read_history(judging / "metrics.csv")
    told = {name for name in history if name.startswith(("train/reward", "val/reward"))}
    for name in ("reward", "reward/accuracy", "reward/margin", "reward/chosen", "reward/rejected"):
        assert {f"train/{name}", f"val/{name}"} <= told
    assert any(name.startswith("val/reward/accuracy/") for name in told)


def test_only_a_reward_model_is_asked_for_rewards(
    answering: Path, judging: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--data-root", str(folder / "preferences"), "--split", "validation", "--task", "rewarded"]
    assert main(["evaluate", str(judging), *how]) == 0
    assert "all pairs, right" in capsys.readouterr().out
    assert main(["evaluate", str(answering), *how]) == 1
    assert "the model gives no rewards; stage=reward makes one that does" in capsys.readouterr().err


def test_a_reward_that_is_no_number_stops_before_the_update(
    answering: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = shutil.copytree(answering / "checkpoint", tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["decoder.embedding.weight"][mmfusion.load(answering).pipeline.tokenizer.score] = torch.nan
    save_file(tensors, parent / "model.safetensors")
    lineage = json.loads((parent / "lineage.json").read_text())
    lineage["files"]["model.safetensors"] = sha256(parent / "model.safetensors")
    (parent / "lineage.json").write_text(json.dumps(lineage))
    small = [*SMALL, "trainer.num_sanity_val_steps=0", "data.batch_size=2"]
    given = [f"checkpoint={parent}", *pairs_in(folder), f"paths.run={tmp_path / 'run'}", "steps=2"]
    status, told = fails(["stage=reward", *given, *small], capsys)
    assert status == 1
    assert "the loss of step 0 is nan; nothing was updated. Samples: " in told
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_an_adapter_is_merged_where_training_goes_on_from_it(preferring: Path, folder: Path) -> None:
    """The second run's base answers as the first with its adapter."""
    run = folder / "again"
    given = [f"checkpoint={preferring}", *pairs_in(folder), f"paths.run={run}"]
    assert main(["train", "stage=preference", *given, *SHORT, "optim.lr=0.0", "scheduler=constant"]) == 0
    asked = {"prompt": "What is this?", "max_new": 8}
    answers = [mmfusion.load(one).generate(**asked) for one in (preferring, run)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("converter", ["[lora]", "[qlora]"])
def test_killed_in_the_preference_stage_it_goes_on_to_the_same_adapter(
    converter: str, answering: Path, folder: Path, tmp_path: Path
) -> None:
    given = [
        f"checkpoint={answering}",
        f"data.root={folder / 'preferences'}",
        "data.weights=null",
        *SMALL,
        "trainer.limit_val_batches=1",
        f"converter={converter}",
    ]
    runs = [tmp_path / name for name in ("whole", "stopped")]
    for run in runs:
        assert main(["train", "stage=preference", *given, f"paths.run={run}", "steps=4"]) == 0
    stopped = runs[1]
    for file in (*stopped.glob("checkpoint/**/*"), stopped / "report.html"):
        if file.is_file():
            file.unlink()
    (stopped / "resume" / "step=4.ckpt").unlink()
    assert main(["train", f"resume={stopped}"]) == 0
    adapters = [load_file(run / "checkpoint" / "adapter" / "adapter_model.safetensors") for run in runs]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    bases = [weights(run) for run in runs]
    assert all(torch.equal(bases[0][name], bases[1][name]) for name in bases[0])


def test_beside_four_bits_the_rounded_weights_are_saved_averaged_or_not(
    answering: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    given = [f"checkpoint={answering}", *pairs_in(folder), f"paths.run={run}", "converter=[qlora]"]
    averaged = ["callbacks=[default,ema]", "callbacks.ema.decay=0.9"]  # at which a mean of equal bytes is not theirs
    assert main(["train", "stage=preference", *given, *SHORT, *averaged]) == 0
    model = mmfusion.load(answering).network
    lora.Lora(parts=["decoder", "fusion"], base="nf4-double")(model)
    expected, before, got = lora.base_state(model, once(model)), weights(answering), weights(run)
    assert set(got) == set(before)
    assert all(torch.equal(got[name], expected[name]) for name in got)
    rounded = {name for name in got if not torch.equal(got[name], before[name])}
    assert {name.partition(".")[0] for name in rounded} == {"decoder", "fusion"}
    assert mmfusion.load(run).generate(prompt="What is this?", max_new=4)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert mmfusion.load(run).generate(prompt="What is this?", max_new=4)  # anything reads it


def test_a_machine_that_cannot_pack_weights_is_told_before_work_starts(
    answering: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    given = [f"checkpoint={answering}", *pairs_in(folder), f"paths.run={tmp_path / 'run'}", "converter=[qlora]"]
    status, told = fails(["stage=preference", *given, *SHORT], capsys)
    assert status == 1
    assert "wants bitsandbytes, which does not run here" in told
    assert not (tmp_path / "run").exists()


def test_shards_that_are_not_there_are_refused_in_one_line(
    answering: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"checkpoint={answering}", f"data.root={folder / 'nothing'}"]
    status, told = fails(["stage=finetune", "data.prepare=null", *given, *SHORT], capsys)
    assert status == 1
    assert "no manifest here" in told


def prompts_in(folder: Path) -> list[str]:
    return [f"data.root={folder / 'checks'}", "data.weights=null", "objective.grpo.samples=2"]


def test_rewards_are_told_by_kind_of_question_and_plan_counts_the_step(
    answering: Path, judging: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a reward that a model gives, so that there is always a difference; with a reference."""
    reward = ["objective.grpo.reward._target_=mmfusion.training.reference.Learned"]
    reward += [f"objective.grpo.reward.checkpoint={judging}", "objective.grpo.beta=0.1"]
    given = ["stage=policy", f"checkpoint={answering}", *prompts_in(folder), *reward]
    assert main(["plan", *given]) == 0
    assert "objective.grpo" in capsys.readouterr().out
    run = tmp_path / "run"
    assert main(["train", *given, *SHORT, "optim.lr=0.05", "scheduler=constant", f"paths.run={run}"]) == 0
    history = read_history(run / "metrics.csv")
    told = {name for name in history if name.startswith(("train/policy", "val/policy"))}
    for name in ("reward", "pieces", "entropy", "kl"):
        assert {f"train/policy/{name}", f"val/policy/{name}"} <= told
    assert {"train/policy/clipped", "train/policy/even"} <= told
    assert any(name.startswith("train/policy/reward/") for name in told)
    assert history["train/policy/kl"][1][0] == pytest.approx(0, abs=1e-5)
    assert history["val/policy"][1][0] == pytest.approx(-history["val/policy/reward"][1][0])
    adapter = load_file(run / "checkpoint" / "adapter" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    lineage = json.loads((run / "checkpoint" / "lineage.json").read_bytes())
    assert [parent["name"] for parent in lineage["parents"]] == [f"{one}/checkpoint" for one in (answering, judging)]


def test_only_a_reward_model_gives_rewards(answering: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = ["objective.grpo.reward._target_=mmfusion.training.reference.Learned"]
    reward += [f"objective.grpo.reward.checkpoint={answering}"]
    given = ["stage=policy", f"checkpoint={answering}", *prompts_in(folder), *reward]
    status, told = fails([*given, *SHORT], capsys)
    assert status == 1
    assert "is of stage finetune, which gives no rewards" in told


def test_stopped_between_two_visits_a_policy_goes_on_to_the_same_adapter(
    answering: Path, judging: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After two of three updates from one drawing of answers; and not where another model judges by now."""
    judging = shutil.copytree(judging, tmp_path / "judging")
    reward = ["objective.grpo.reward._target_=mmfusion.training.reference.Learned"]
    reward += [f"objective.grpo.reward.checkpoint={judging}", "data.visits=3", "optim.lr=0.05", "scheduler=constant"]
    given = ["stage=policy", f"checkpoint={answering}", *prompts_in(folder), *reward, *SMALL]
    runs = [tmp_path / name for name in ("whole", "stopped")]
    for run in runs:
        assert main(["train", *given, "trainer.limit_val_batches=0", f"paths.run={run}", "steps=4"]) == 0
    stopped = runs[1]
    for file in (*stopped.glob("checkpoint/**/*"), stopped / "report.html"):
        if file.is_file():
            file.unlink()
    (stopped / "resume" / "step=4.ckpt").unlink()
    go_on = [f"resume={stopped}", "--allow", "mmfusion.training.reference.Learned"]
    weights = judging / "checkpoint" / "adapter" / "adapter_model.safetensors"  # all else is what it was trained from
    of_then = weights.read_bytes()
    weights.write_bytes(of_then[:-1] + bytes([of_then[-1] ^ 1]))
    capsys.readouterr()
    status, told = fails(go_on, capsys)
    assert status == 1
    assert "reward.checkpoint: is not the one that this run began with" in told
    weights.write_bytes(of_then)
    assert main(["train", *go_on]) == 0
    adapters = [load_file(run / "checkpoint" / "adapter" / "adapter_model.safetensors") for run in runs]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    clipped = read_history(stopped / "metrics.csv")["train/policy/clipped"][1]
    assert clipped[0] == 0
