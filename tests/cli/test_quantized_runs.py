"""Quantized runs and checkpoints, from the command line: what they leave, what takes them, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mmfusion
from mmfusion import checkpoint
from mmfusion.checkpoint import CheckpointError, layout
from mmfusion.cli.main import main
from mmfusion.converters import lora
from mmfusion.converters.lora import Lora
from tests.cli.trained import SMALL, fails
from tests.tiny_run import TOKENIZER, media, save

STEPS = ["steps=4", *SMALL, "trainer.limit_val_batches=1"]
INTEGERS = (".int8", ".int4")


@pytest.fixture(scope="module")
def rounded(one_step_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rounded") / "run"
    assert main(["train", f"checkpoint={one_step_run}", "converter=[int8]", f"paths.run={run}", *STEPS]) == 0
    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


# -------------------------------------------------------------------------------------------------- while it is trained


def test_a_trained_checkpoint_holds_integers_and_does_what_any_other_does(rounded: Path, tmp_path: Path) -> None:
    folder = rounded / "checkpoint"
    tensors = load_file(folder / "model.safetensors")
    assert sum(name.endswith(".int8") for name in tensors) > 40
    assert yaml.safe_load((folder / "config.yaml").read_text())["quantization"] == {"scheme": "int8", "parts": {}}
    model = mmfusion.load(rounded)
    given = media(tmp_path)
    assert np.linalg.norm(model.embed(image=str(given / "a.png"))) == pytest.approx(1)
    assert isinstance(model.generate(audio=str(given / "a.wav"), max_new=3), str)
    assert main(["generate", str(rounded), "--image", str(given / "a.png"), "--max-new", "2"]) == 0
    assert main(["evaluate", str(rounded), "--task", "watch_exercise", "evaluation=sample"]) == 0


def test_killed_and_resumed_it_ends_with_the_same_integers(
    one_step_run: Path, rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    given = [f"checkpoint={one_step_run}", "converter=[int8]", f"paths.run={run}", *STEPS]
    assert main(["train", *given]) == 0
    for gone in ("report.html", "resume/step=4.ckpt"):
        (run / gone).unlink()
    shutil.rmtree(run / "checkpoint")
    assert main(["train", f"resume={run}"]) == 0
    expected, got = (load_file(one / "checkpoint" / "model.safetensors") for one in (rounded, run))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("name", ["adamw_8bit", pytest.param("lion_8bit", marks=pytest.mark.slow)])
def test_with_state_of_eight_bits_it_ends_with_the_same_weights(name: str, one_step_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", f"checkpoint={one_step_run}", f"optim={name}", f"paths.run={run}", *STEPS]) == 0
    expected = load_file(run / "checkpoint" / "model.safetensors")
    for gone in ("report.html", "resume/step=4.ckpt"):
        (run / gone).unlink()
    shutil.rmtree(run / "checkpoint")
    assert main(["train", f"resume={run}"]) == 0
    got = load_file(run / "checkpoint" / "model.safetensors")
    assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.parametrize("adapters", ["keep", "merge"])
def test_with_adapters_their_base_is_rounded(adapters: str, one_step_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = ["converter=[lora,int4]", f"converter.int4.adapters={adapters}", "optim.lr=0.05", "scheduler=constant"]
    assert main(["train", f"checkpoint={one_step_run}", *how, f"paths.run={run}", *STEPS]) == 0
    assert (run / "checkpoint" / "adapter").exists() == (adapters == "keep")
    assert lora.names(mmfusion.load(run).network) == ([lora.DEFAULT] if adapters == "keep" else [])
    names = load_file(run / "checkpoint" / "model.safetensors")
    assert any(name.endswith(".int4") for name in names)
    assert not any(".lora_" in name for name in names)
    more = tmp_path / "more"  # and the next stage begins with what they stand for together
    assert main(["train", f"checkpoint={run}", f"paths.run={more}", *STEPS]) == 0
    assert not any(name.endswith(INTEGERS) for name in load_file(more / "checkpoint" / "model.safetensors"))


def test_the_next_stage_says_that_it_begins_in_full(
    rounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    still = ["optim.lr=0", "optim.weight_decay=0"]
    assert main(["train", f"checkpoint={rounded}", f"paths.run={run}", *STEPS, *still]) == 0
    assert (
        f"{rounded / 'checkpoint'} holds integers; training begins with what they stand for" in capsys.readouterr().out
    )
    full = mmfusion.load(run).network
    for name, held in mmfusion.load(rounded).network.named_parameters():
        weight: Any = held
        assert torch.equal(full.get_parameter(name), weight.dequantize() if hasattr(weight, "qdata") else weight)


def test_rounded_again_in_the_same_way_it_stays_as_it_is(rounded: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    still = ["optim.lr=0", "optim.weight_decay=0", "converter=[int8]"]
    assert main(["train", f"checkpoint={rounded}", f"paths.run={run}", *STEPS, *still]) == 0
    before, after = (load_file(one / "checkpoint" / "model.safetensors") for one in (rounded, run))
    assert all(torch.equal(before[name], after[name]) for name in before if name.endswith(".int8"))


def test_rounded_in_another_way_it_is_refused(
    rounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"checkpoint={rounded}", "converter=[int4]", f"paths.run={tmp_path / 'run'}", *STEPS]
    capsys.readouterr()
    status, error = fails(given, capsys)
    assert status == 2
    assert "is quantized already, with scheme=int8, not int4; set converter.int4.scheme so, or begin with" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (["converter=[int8,int4]"], "converter: a model is quantized once; leave one of int8, int8_int4 and int4"),
        (["converter=[int4]", "converter.int4.parts={decodr: int8}"], "converter.parts.decodr: the model has no"),
        (["converter=[int4]", "converter.int4.scheme=int2"], "converter.int4.scheme"),
        (["converter=[int4]", "converter.int4.group=1"], "converter.int4.group"),
        (["converter=[qlora,int4]"], "converter: qlora keeps weights in four bits already"),
        (["converter=[lora,int4]", "converter.lora.dora=true"], "converter.lora.dora: measures the weights that are"),
        (["converter=[int4]", "converter.int4.start=4"], "converter.int4.start=4: of 4 steps none would round"),
        (["converter=[int4]", "converter.int4.start=2", "keep=best"], "converter.int4.start: keep=best may keep"),
    ],
)
def test_what_cannot_be_rounded_so_is_refused(
    how: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    _, error = fails([*how, f"paths.run={tmp_path / 'run'}", *STEPS], capsys)
    assert told in error
    assert not (tmp_path / "run").exists()


def test_prompts_have_nothing_to_be_taught(
    one_step_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    how = ["stage=policy", f"checkpoint={one_step_run}", "converter=[int4]", "converter.int4.distillation=1.0"]
    status, error = fails([*how, f"paths.run={tmp_path / 'run'}", *STEPS], capsys)
    assert status == 2
    assert "converter.int4.distillation: prompts have no answers to be taught; leave it out" in error


def test_a_checkpoint_that_was_untied_is_no_stage_to_begin_with(
    one_step_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    how = ["--scheme", "int4", "--part", "head=none", "--out", str(small)]
    assert main(["quantize", str(one_step_run), *how]) == 0
    assert mmfusion.load(small).network.decoder.head is not None
    capsys.readouterr()
    _, error = fails([f"checkpoint={small}", f"paths.run={tmp_path / 'run'}", *STEPS], capsys)
    assert "was untied to be quantized (decoder.head.weight); begin with the checkpoint that it was made of" in error


def test_a_teacher_in_full_is_neither_trained_nor_saved(one_step_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = ["converter=[int4]", "converter.int4.distillation=0.5"]
    assert main(["train", f"checkpoint={one_step_run}", *how, f"paths.run={run}", *STEPS]) == 0
    point = torch.load(run / "resume" / "step=4.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in point if "teacher" in name or "distillation" in name]
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    at = header.split(",").index("train/distillation")
    assert all(float(line.split(",")[at]) > 0 for line in lines if line.split(",")[at])


# ----------------------------------------------------------------------------------------------------- without training


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.40), ("int8_int4", 0.30), ("int4", 0.30)])
def test_a_checkpoint_is_rounded_to_nearest(
    scheme: str, most: float, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny), "--scheme", scheme, "--group", "8"]) == 0
    assert f"checkpoint  {tiny / scheme}" in capsys.readouterr().out
    weights = [folder / "model.safetensors" for folder in (tiny / "checkpoint", tiny / scheme)]
    assert weights[1].stat().st_size < most * weights[0].stat().st_size
    lineage = json.loads((tiny / scheme / "lineage.json").read_text())
    assert lineage["quantized"] == {"scheme": scheme, "how": "rounded to nearest"}
    assert [parent["name"] for parent in lineage["parents"]] == [str(tiny / "checkpoint")]
    card = (tiny / scheme / "README.md").read_text()
    assert scheme in card
    assert "Not evaluated yet" in card
    full, held = (mmfusion.load(one).embed(text=["a cat", "un chat"]) for one in (tiny, tiny / scheme))
    assert 0 < np.abs(full - held).max() < 0.5


def test_a_checkpoint_is_calibrated_on_samples(few: Path, tiny: Path, tmp_path: Path) -> None:
    how = ["quantize", str(tiny), "--scheme", "int4", "--group", "8"]
    assert main([*how, "--out", str(tmp_path / "nearest")]) == 0
    assert main([*how, "--calibrate", str(few), "--samples", "24", "--out", str(tmp_path / "fitted")]) == 0
    assert json.loads((tmp_path / "fitted" / "lineage.json").read_text())["quantized"]["how"] == "calibrated"
    nearest, fitted = (load_file(tmp_path / name / "model.safetensors") for name in ("nearest", "fitted"))
    scales = [name for name in nearest if name.endswith(".scale")]
    assert any(not torch.equal(nearest[name], fitted[name]) for name in scales)
    assert all(bool((fitted[name] <= nearest[name]).all()) for name in scales)


def test_with_adapters_merged_their_layers_are_calibrated_too(few: Path, tiny: Path, tmp_path: Path) -> None:
    model = mmfusion.load(tiny)
    Lora(rank=2)(model.network)
    config = checkpoint.load(tiny)[1]
    lineage = {"step": 3}
    adapted = tmp_path / "adapted" / "checkpoint"
    checkpoint.save(adapted, config=config, model=model.network, tokenizer=TOKENIZER, lineage=lineage, card="# x\n")
    how = ["quantize", str(adapted), "--scheme", "int4", "--group", "8", "--merge"]
    assert main([*how, "--out", str(tmp_path / "nearest")]) == 0
    assert main([*how, "--calibrate", str(few), "--samples", "500", "--out", str(tmp_path / "fitted")]) == 0
    assert json.loads((tmp_path / "fitted" / "lineage.json").read_text())["quantized"]["samples"] < 500
    nearest, fitted = (load_file(tmp_path / name / "model.safetensors") for name in ("nearest", "fitted"))
    scales = [name for name in nearest if name.startswith("decoder.transformer") and name.endswith(".scale")]
    assert all(not torch.equal(nearest[name], fitted[name]) for name in scales)


def test_in_its_own_folder_a_checkpoint_is_a_dot(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny / "checkpoint")
    assert main(["quantize", ".", "--scheme", "int8"]) == 0
    assert (tiny / "int8" / "model.safetensors").exists()


def test_a_sample_of_no_numbers_is_not_calibrated_with(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmfusion.data.writer import write_manifest, write_shard
    from mmfusion.types import Part, Sample
    from tests.tiny_run import wav

    wave = np.sin(np.arange(8000) / 9).astype(np.float32)
    wave[100] = np.nan
    parts = (Part(type="audio", file="wav", data=wav(wave)), Part(type="text", text="a tone", lang="en"))
    entry = write_shard(tmp_path / "a.tar", [Sample(key="nan", parts=parts)], split="train", root=tmp_path)
    write_manifest(tmp_path, [entry])
    told = refused(
        ["quantize", str(tiny), "--scheme", "int4", "--calibrate", str(tmp_path), "--out", str(tmp_path / "out")],
        capsys,
    )
    assert f"{tmp_path}: calibration: key 'nan' cannot be used" in told
    assert "mend it, or calibrate on other shards" in told
    assert not (tmp_path / "out").exists()


def test_what_is_quantized_already_or_there_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny), "--scheme", "int8"]) == 0
    before = files(tiny)
    assert "int8: is there already; give another" in refused(["quantize", str(tiny), "--scheme", "int8"], capsys)
    told = refused(["quantize", str(tiny / "int8"), "--scheme", "int4"], capsys)
    assert "is quantized already (int8); begin with the checkpoint that it was made of" in told
    told = refused(["quantize", str(tiny), "--scheme", "int4", "--out", str(tiny / "checkpoint" / "x")], capsys)
    assert f"x: is inside the checkpoint {tiny / 'checkpoint'}; give another folder" in told
    told = refused(["quantize", str(tiny), "--scheme", "int4", "--out", str(tiny / "int8" / "README.md" / "x")], capsys)
    assert "nothing can be written in" in told
    told = refused(["quantize", str(tiny), "--scheme", "int4", "--part", "decodr=int8"], capsys)
    assert "converter.parts.decodr: the model has no linear map or embedding there; there are embeddings, head" in told
    assert files(tiny) == before


# ------------------------------------------------------------------------------------------------------------- tampered


def resigned(folder: Path) -> None:
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["files"] = {name: layout.sha256(folder / name) for name in lineage["files"]}
    (folder / "lineage.json").write_text(json.dumps(lineage))


def without_scale(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["decoder.embedding.weight.scale"]


def of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["decoder.embedding.weight.int4"] = tensors["decoder.embedding.weight.int4"][:-1]


def of_another_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["decoder.embedding.weight.scale"] = tensors["decoder.embedding.weight.scale"].double()


def of_another_integer(tensors: dict[str, torch.Tensor]) -> None:
    tensors["decoder.embedding.weight.int4"] = tensors["decoder.embedding.weight.int4"].to(torch.int16)


def of_no_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["decoder.embedding.weight.scale"][0, 0] = torch.nan


def too_many(tensors: dict[str, torch.Tensor]) -> None:
    packed = tensors["decoder.embedding.weight.int4"]
    tensors["decoder.embedding.weight.int4"] = torch.cat([packed, packed[:8]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_scale, "tensor decoder.embedding.weight.scale: missing"),
        (of_another_shape, "tensor decoder.embedding.weight.int4: shape"),
        (of_another_type, "tensor decoder.embedding.weight.scale: torch.float64"),
        (of_another_integer, "tensor decoder.embedding.weight.int4: torch.int16, the model's is torch.uint8"),
        (of_no_number, "tensor decoder.embedding.weight.scale: holds what is no number"),
        (too_many, "tensor decoder.embedding.weight.int4: shape"),
    ],
)
def test_integers_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], None], told: str, tiny: Path, tmp_path: Path
) -> None:
    assert main(["quantize", str(tiny), "--scheme", "int4", "--group", "8", "--out", str(tmp_path / "small")]) == 0
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "small" / "model.safetensors")
    resigned(tmp_path / "small")
    with pytest.raises(CheckpointError, match=told):
        mmfusion.load(tmp_path / "small")
    with pytest.raises(CheckpointError, match=told):  # and to begin with
        checkpoint.fill(mmfusion.load(tiny).network, tmp_path / "small")


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"scheme": "int2", "group": 8, "parts": {}}, "quantization.scheme"),
        ({"scheme": "int4", "group": 8, "parts": {"decodr": "int8"}}, "quantization: converter.parts.decodr"),
        ({"_target_": "os.system", "command": "true"}, "is no class that a checkpoint may build"),
        ({"scheme": "int4", "group": 10**400, "parts": {}}, "quantization.group"),
        ("int4", "quantization: holds no keys"),
    ],
)
def test_a_quantization_that_was_edited_is_named(node: object, told: str, tiny: Path, tmp_path: Path) -> None:
    assert main(["quantize", str(tiny), "--scheme", "int4", "--group", "8", "--out", str(tmp_path / "small")]) == 0
    path = tmp_path / "small" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "quantization": node}))
    resigned(tmp_path / "small")
    with pytest.raises(CheckpointError, match=told):
        mmfusion.load(tmp_path / "small")
