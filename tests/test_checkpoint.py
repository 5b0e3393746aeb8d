"""The checkpoint folder: round trip, what it refuses (FAULTS.md 36, 48-51), and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from mmfusion import checkpoint
from mmfusion.checkpoint import CheckpointError, layout, writing
from mmfusion.checkpoint.weights import read_header

ALLOW = ["torch.nn.Linear", "torch.nn.Sequential"]
CONFIG = {"model": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}, "pipeline": {"row_length": 8}}


def write(folder: Path, **config: Any) -> nn.Module:
    folder.parent.mkdir(exist_ok=True)
    tokenizer = folder.parent / "vocabulary"
    tokenizer.write_bytes(b"pieces")
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    checkpoint.save(folder, config=CONFIG | config, model=model, tokenizer=tokenizer, lineage={"step": 7}, card="# A\n")
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "run" / "checkpoint")
    return tmp_path / "run" / "checkpoint"


def refused(path: Path, *words: str, allow: list[str] = ALLOW) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, allow=allow)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def resign(folder: Path) -> None:
    """What someone who tampers would do: the hashes fit again."""
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["files"] = {name: layout.sha256(folder / name) for name in checkpoint.HASHED}
    (folder / "lineage.json").write_text(json.dumps(lineage))


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    change(tree)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    resign(folder)


# --------------------------------------------------------------------------------------------------------- round trip


def test_round_trip_by_run_and_by_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for path in (folder, folder.parent, Path(".")):
        model, config = checkpoint.load(path, allow=ALLOW)
        torch.manual_seed(0)
        expected = nn.Linear(3, 2)
        assert torch.equal(model.weight, expected.weight)  # pyright: ignore[reportArgumentType]  (a Module forgets its parts' types)
        assert not model.training
        assert config == {"format": 1, **CONFIG}
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "chat_template.jinja", "config.yaml", "lineage.json", "model.safetensors", "tokenizer.model",
    ]  # fmt: skip
    assert json.loads((folder / "lineage.json").read_text())["step"] == 7


def test_shared_tensors_are_written_once_and_stay_shared(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

    setattr(sys.modules[__name__], "Tied", Tied)  # noqa: B010  (a module has no such name for the type checker)
    name = f"{__name__}.Tied"
    (tmp_path / "v").write_bytes(b"x")
    model = Tied()
    config = {"model": {"_target_": name}, "pipeline": {}}
    checkpoint.save(tmp_path / "c", config=config, model=model, tokenizer=tmp_path / "v", lineage={}, card="")
    loaded, _ = checkpoint.load(tmp_path / "c", allow=[name])
    assert isinstance(loaded.a, nn.Linear)
    assert isinstance(loaded.b, nn.Linear)
    assert loaded.a.weight is loaded.b.weight
    assert torch.equal(loaded.a.weight, model.a.weight)


def test_lineage_names_data_parents_and_versions(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"shards": [{"file": "b", "sha256": "2"}, {"file": "a", "sha256": "1"}]}')
    got = checkpoint.lineage(stage="finetune", step=5, seed=1, data=tmp_path, commit="abc", parents=[folder])
    assert got["parents"][0]["sha256"] == layout.sha256(folder / "model.safetensors")
    assert (got["stage"], got["data"]["shards"]) == ("finetune", 2)
    assert got["versions"]["torch"] in torch.__version__
    (tmp_path / "manifest.json").write_text('{"shards": [{"file": "a", "sha256": "1"}, {"file": "b", "sha256": "2"}]}')
    again = checkpoint.lineage(stage="finetune", step=5, seed=1, data=tmp_path, commit="abc")
    assert again["data"] == got["data"]
    shards = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**shards, "made_from": "3"}))
    other = checkpoint.lineage(stage="finetune", step=5, seed=1, data=tmp_path, commit="abc")
    assert other["data"]["fingerprint"] != got["data"]["fingerprint"]


# ------------------------------------------------------------------------------------------ kills, cuts, flipped bits


@pytest.mark.parametrize("moment", ["save_file", "_sync", "_swap"])
def test_a_failed_save_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writing, moment, full)
    with pytest.raises(OSError, match="disk full"):
        write(folder, pipeline={"row_length": 9})
    assert checkpoint.load(folder, allow=ALLOW)[1] == {"format": 1, **CONFIG}
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def test_killed_between_the_two_renames(folder: Path) -> None:
    folder.rename(layout.aside(folder))
    assert checkpoint.load(folder, allow=ALLOW)[1]["format"] == 1
    assert checkpoint.load(folder.parent, allow=ALLOW)[1]["format"] == 1
    write(folder, pipeline={"row_length": 9})
    assert checkpoint.load(folder, allow=ALLOW)[1]["pipeline"] == {"row_length": 9}


def test_what_a_killed_save_left_goes_with_the_next_and_what_another_writes_stays(folder: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, others = (folder.with_name(f".{folder.name}.{pid}.draft") for pid in (ended.pid, os.getppid()))
    for draft in (left, others):
        draft.mkdir()
    write(folder)
    assert not left.exists()
    assert others.exists()


def test_cut_or_flipped_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (0, 5, 40, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        refused(folder, "model.safetensors")
    (folder / "model.safetensors").write_bytes(whole[:-1])
    refused(folder, "tensor weight", "it is cut")
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(folder, "model.safetensors", "damaged")


def test_vocabulary_of_another_checkpoint(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"others")
    refused(folder, "tokenizer.model", "changed")


def header(folder: Path, entries: dict[str, Any] | bytes, data: int = 32) -> None:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data)
    resign(folder)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_hostile_safetensors(folder: Path) -> None:
    header(folder, {"weight": entry([2, 3], 0, 24), "bias": entry([2], 20, 28)})
    refused(folder, "tensor bias", "overlap")
    header(folder, {"weight": entry([2, 3], 0, 24), "bias": entry([2], 24, 1 << 50)})
    refused(folder, "tensor bias", "cut")
    header(folder, {"weight": entry([2, 3], -4, 24)})
    refused(folder, "tensor weight")
    for nonsense in (
        b"[1]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": "xy"}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1.5]}}',
        b'{"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 0]}}',
        b"[" * 5000,
    ):
        header(folder, nonsense)
        refused(folder, "model.safetensors", "header")
    (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    resign(folder)
    refused(folder, "model.safetensors", "header of 9,223,372,036,854,775,807 bytes")


def test_tensors_that_do_not_fit(folder: Path) -> None:
    weight, bias = torch.zeros(2, 3), torch.zeros(2)
    for tensors, words in (
        ({"weight": weight}, ("tensor bias", "missing")),
        ({"weight": weight, "bias": bias, "extra": torch.zeros(1)}, ("tensor extra",)),
        ({"weight": weight.T.contiguous(), "bias": bias}, ("tensor weight", "(3, 2)", "(2, 3)")),
        ({"weight": weight.double(), "bias": bias}, ("tensor weight", "float64")),
    ):
        save_file(tensors, folder / "model.safetensors")
        resign(folder)
        refused(folder, "model.safetensors", *words)


# --------------------------------------------------------------------------------------------------- nothing executes


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # pyright: ignore[reportReturnType]  (what pickle takes is wider than its stub)


def test_weights_whose_header_begins_as_a_pickle_are_no_pickle(tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header; one in 32 lengths ends in 0x80."""
    found = 0
    for length in range(1, 140):
        path = tmp_path / "w.safetensors"
        save_file({"a" * length: torch.zeros(2)}, path)
        found += path.read_bytes()[0] == 0x80
        assert list(read_header(path)) == ["a" * length]
    assert found


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "pytorch_model.bin", "model.safetensors"])
def test_pickles_are_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(), protocol))
        refused(tmp_path / name, name, "pickle")
    torch.save({"a": torch.zeros(2)}, tmp_path / name)
    refused(tmp_path / name, name, "pickle")
    (tmp_path / "only" / name).parent.mkdir()
    (tmp_path / name).rename(tmp_path / "only" / name)
    refused(tmp_path / "only", "config.yaml")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(), 4))
    resign(folder)
    refused(folder, "model.safetensors", "pickle")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "target",
    [
        "numpy.load",
        "builtins.exec",
        "setuptools._distutils.spawn.spawn",
        "logging.os.system",
        "functools.partial",
        "hydra.utils.get_method",
        "mmfusion.config.build",
        "torch.nn.Linear ",
        ["os.system"],
        {"_target_": "os.system"},
        None,
        7,
    ],
    ids=str,
)
def test_targets_outside_the_list_are_refused_before_import(folder: Path, target: object) -> None:
    edit_config(folder, lambda tree: tree["model"].update(inner=[{"deep": {"_target_": target}}]))
    before = set(sys.modules)
    refused(folder, "config.yaml", "model.inner.0.deep._target_")
    assert not {name for name in set(sys.modules) - before if name.startswith("setuptools")}


def test_own_classes_only_when_named(folder: Path) -> None:
    refused(folder, "config.yaml", "model._target_", "torch.nn.Linear", "allow", allow=[])
    model, _ = checkpoint.load(folder, allow=["torch.nn.Linear"])
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["model"].update(_args_=[1]), ("model._args_",)),
        (lambda t: t["model"].update(in_features="${oc.env:HOME}"), ("model.in_features", "not resolved")),
        (lambda t: t.update(format=99), ("format 99", "upgrade")),
        (lambda t: t.update(format=True), ("format",)),
        (lambda t: t.pop("pipeline"), ("pipeline", "missing")),
        (lambda t: t["model"].update(in_features="three"), ("model", "cannot be built")),
        (lambda t: t.update(model={}), ("model is a dict, no module",)),
    ],
)
def test_configurations_that_are_not_ours(
    folder: Path, change: Callable[[dict], object], words: tuple[str, ...]
) -> None:
    edit_config(folder, change)
    refused(folder, "config.yaml", *words)


@pytest.mark.parametrize("tag", ["!!pairs", "!!omap", "!!seq"])
def test_a_tag_that_hides_a_target_is_refused_before_anything_runs(folder: Path, tmp_path: Path, tag: str) -> None:
    """Tagged, a list becomes tuples, which Hydra makes lists again and builds."""
    ran = tmp_path / "ran"
    spawn = f"{{_target_: setuptools._distutils.spawn.spawn, cmd: [touch, {ran}]}}"
    path = folder / "config.yaml"
    path.write_text(path.read_text() + f"zz: {tag}\n- a: {spawn}\n")
    resign(folder)
    refused(folder, "tags", "not allowed")
    assert not ran.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch exploded']",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "[" * 900,
        "\x00",
        "- 1",
        "",
        "x" * 1_000_001,
    ],
    ids=["python tag", "aliases", "deep", "nul", "list", "empty", "huge"],
)
def test_yaml_that_is_not_plain(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    resign(folder)
    refused(folder, "config.yaml")


def test_what_is_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no checkpoint")
    (tmp_path / "empty" / "folder.pt").mkdir()
    refused(tmp_path / "empty", "no checkpoint")
    refused(tmp_path / "a\0b", "no file name")
    (tmp_path / "page.html").write_text("<html>")
    refused(tmp_path / "page.html", "give a checkpoint folder")
    for name in ("tokenizer.model", "lineage.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, name, "missing")
        (folder / name).write_bytes(kept)
    (folder / "lineage.json").write_text("{}")
    refused(folder, "lineage.json")


def test_the_list_names_only_classes_of_ours() -> None:
    for name in checkpoint.BUILDABLE:
        assert re.fullmatch(r"mmfusion\.(models|data)(\.\w+)+", name)
        module, _, attribute = name.rpartition(".")
        found = getattr(__import__(module, fromlist=[attribute]), attribute)
        assert found.__module__ == module, f"{name} is only imported there"
