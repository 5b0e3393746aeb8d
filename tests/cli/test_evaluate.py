"""`mmfusion evaluate` on a real run: the same numbers as in training, any shards, comparison, curve, and each fault."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from webdataset.writer import TarWriter

from mmfusion import config
from mmfusion.cli.asked import asked
from mmfusion.cli.main import main
from mmfusion.data.shards import ShardSet, read_manifest
from mmfusion.data.writer import write_manifest, write_shard

SAMPLE = Path("data_prep/sample")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars as img2dataset writes them, of real pictures and their names, in a folder of the folder."""
    root = tmp_path_factory.mktemp("plain")
    test = ShardSet(SAMPLE, "test")
    pictures = [s for i in range(40) if (s := test.read(i)).of("image") and s.of("text")]
    (root / "part").mkdir()
    for number in (0, 1):
        with TarWriter(str(root / "part" / f"{number:05d}.tar"), encoder=False) as tar:
            for i, sample in enumerate(pictures[number::2]):
                name = (sample.of("text")[0].text or "").encode()
                members = {"png": sample.of("image")[0].data, "txt": name, "json": b'{"url": "x"}'}
                tar.write({"__key__": f"{number:05d}{i:04d}", **members})
    return root


@pytest.fixture(scope="module")
def two_steps(one_step_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a second resume point, of other weights: as if it had been saved before its first step."""
    import torch

    run = tmp_path_factory.mktemp("runs") / "two"
    shutil.copytree(one_step_run, run)
    point = torch.load(run / "resume" / "step=1.ckpt", weights_only=True)
    for name, tensor in point["state_dict"].items():
        point["state_dict"][name] = torch.randn(tensor.shape) / 10 if tensor.is_floating_point() else tensor
    torch.save(point, run / "resume" / "step=0.ckpt")
    return run


def written(out: Path) -> list[dict]:
    assert (out / "evaluation.html").stat().st_size > 0
    return json.loads((out / "metrics.json").read_text())


def test_a_run_on_its_own_shards_gives_the_numbers_of_its_training(one_step_run: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in one_step_run.rglob("*")}
    tasks = ["--task", "sound_kind", "--task", "watch_exercise"]
    assert main(["evaluate", str(one_step_run), *tasks, "--out", str(tmp_path / "out")]) == 0
    known = json.loads((one_step_run / "metrics.json").read_text())
    assert written(tmp_path / "out") == [
        r for task in ("sound_kind", "watch_exercise") for r in known if r["task"] == task
    ]
    assert {p: p.stat().st_mtime_ns for p in one_step_run.rglob("*")} == before


def test_plain_tars_and_overrides_after_a_flag(
    one_step_run: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(one_step_run / "checkpoint"), "--data-root", str(plain), "--out", str(out)]
    assert main([*command, "evaluation.captions.limit=5"]) == 0
    rows = {(r["task"], r["metric"]): r for r in written(out)}
    assert rows["retrieval", "image to text, R@1"]["n"] == 40
    assert rows["captions", "exact from image"]["n"] == 5
    assert "task classes left out: no label" in capsys.readouterr().err


def test_several_checkpoints_with_paired_differences(
    one_step_run: Path, two_steps: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one_step_run, tmp_path / "twin")
    pattern, out = str(tmp_path / "t*"), tmp_path / "out"
    folders = [str(one_step_run), pattern, str(one_step_run / "checkpoint")]  # the last is the first once more
    assert main(["evaluate", *folders, "--data-root", str(plain), "--task", "retrieval", "--out", str(out)]) == 0
    rows = written(out)
    first, twin = dict.fromkeys(r["checkpoint"] for r in rows)
    assert twin.endswith("twin")
    for row in rows:
        if row["checkpoint"] == twin and "rank" not in row["metric"]:
            assert row["difference"]["value"] == 0
            low, high = row["difference"]["ci95"]
            assert low < 0 < high  # forty examples could differ and still none be seen
    assert f"its difference to {first}" in capsys.readouterr().out


def test_folders_with_an_equals_sign_are_no_overrides(
    one_step_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = (Path.cwd() / SAMPLE).resolve()
    for seed in (1, 2):
        shutil.copytree(one_step_run, tmp_path / "sweeps" / f"seed={seed}", copy_function=os.link)

    def folders(*given: str) -> list[str]:
        about = asked(given, root=shards, only=[], config_dir=None, allow=[], along=False)
        return [folder.name for folder in about.folders.values()]

    monkeypatch.chdir(tmp_path / "sweeps")
    assert folders("seed=*", "evaluation=any", "evaluation.captions.limit=5") == ["seed=1", "seed=2"]
    assert folders("seed=2") == ["seed=2"]
    monkeypatch.chdir(tmp_path)
    assert folders("sweeps/seed=*") == ["seed=1", "seed=2"]
    assert main(["evaluate", "sweeps/lr=*"]) == 1
    assert "sweeps/lr=*: no folder with a checkpoint matches" in capsys.readouterr().err


def test_a_curve_over_resume_points_also_before_there_is_a_checkpoint(
    two_steps: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--curve", "--data-root", str(plain), "--task", "retrieval"]
    assert main(["evaluate", str(two_steps), *how, "--out", str(tmp_path / "whole")]) == 0
    rows = written(tmp_path / "whole")
    assert list(dict.fromkeys(r["checkpoint"] for r in rows)) == ["step 0", "step 1"]
    assert "callbacks.resume.save_top_k=-1" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "whole" / "evaluation.html").read_text()

    assert main(["evaluate", str(two_steps), "--data-root", str(plain), *how[3:], "--out", str(tmp_path / "one")]) == 0
    at_the_end = {r["metric"]: r["value"] for r in rows if r["checkpoint"] == "step 1"}
    assert {r["metric"]: r["value"] for r in written(tmp_path / "one")} == at_the_end
    assert any(r["value"] != at_the_end[r["metric"]] for r in rows if r["checkpoint"] == "step 0")

    running = tmp_path / "running"
    shutil.copytree(two_steps, running)
    shutil.rmtree(running / "checkpoint")
    assert main(["evaluate", str(running), *how, "--out", str(tmp_path / "begun")]) == 0
    assert written(tmp_path / "begun") == rows  # the same weights from the configuration and the points alone
    assert main(["evaluate", str(running)]) == 1
    assert "no checkpoint yet; its resume points: --curve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["NOWHERE"], 1, "no such folder"),
        (["EMPTY"], 1, "no checkpoint (config.yaml and model.safetensors are missing)"),
        (["EMPTY/*"], 1, "no folder with a checkpoint matches"),
        (["evaluation=any"], 2, "give at least one run or checkpoint folder"),
        (["RUN", "--data-root", "EMPTY"], 1, "no .tar in it; make shards with: mmfusion data pack"),
        (["RUN", "--data-root", "NOWHERE"], 1, "no such folder; give the folder that holds the shards"),
        (["RUN", "--data-root", "CUT"], 1, "cut/00000.tar: is cut in a header"),
        (["RUN", "--data-root", "SILENT", "--split", "validation"], 1, "no shard of split 'validation'; it has test"),
        (["RUN", "--data-root", "SILENT"], 1, "no task could be asked on these shards"),
        (["RUN", "--task", "captons"], 2, "--task captons: no such task; did you mean 'captions'?"),
        (["RUN", "evaluation=smple"], 2, "evaluation=smple: no such option; did you mean 'sample'?"),
        (["RUN", "evaluation.captions.limt=3"], 2, "captions has no such argument; did you mean 'limit'?"),
        (["RUN", "evaluation.captons.limit=3"], 2, "evaluation.captons: no such task; did you mean 'captions'?"),
        (["RUN", "evaluation.captions.limit=abc"], 2, "must be a valid integer, not 'abc'"),
        (["RUN", "data.root=/x"], 2, "the shards are given by --data-root"),
        (["RUN", "optim.lr=1"], 2, "evaluate takes evaluation=NAME and evaluation.TASK.KEY=VALUE only"),
        (["FOREIGN"], 2, "--allow os.system"),
        (["ALONE"], 2, "give those to evaluate on: --data-root FOLDER"),
        (["--curve", "EMPTY"], 1, "no run folder"),
        (["--curve", "RUN", "FOREIGN"], 2, "--curve: is of one run, not of 2"),
        (["--curve", "DAMAGED", "--task", "sound_kind"], 1, "step=0.ckpt: no weights of this run's model can be read"),
        (["RUN", "--out", "CUT/00000.tar"], 1, "choose another with --out FOLDER"),
    ],
)  # fmt: skip
def test_each_fault_is_one_line(
    arguments: list[str], status: int, says: str,
    one_step_run: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folders = {name: tmp_path / name.lower() for name in ("EMPTY", "CUT", "SILENT", "FOREIGN", "ALONE", "DAMAGED")}
    used = " ".join(arguments)
    for name in ("EMPTY", "CUT"):
        folders[name].mkdir()
    (folders["CUT"] / "00000.tar").write_bytes((plain / "part" / "00000.tar").read_bytes()[:5000])
    if "SILENT" in used:
        silent = [ShardSet(SAMPLE, "test", [e for e in read_manifest(SAMPLE) if e.source == "seglearn"]).read(0)]
        write_manifest(folders["SILENT"], [write_shard(folders["SILENT"] / "a.tar", silent, split="test")])
    for name in ("FOREIGN", "DAMAGED"):
        if name in used:
            shutil.copytree(one_step_run, folders[name])
    if "FOREIGN" in used:
        path = folders["FOREIGN"] / "config.yaml"
        path.write_text(path.read_text().replace("mmfusion.evaluation.pictures.captions", "os.system"))
    if "DAMAGED" in used:
        (folders["DAMAGED"] / "resume" / "step=0.ckpt").write_bytes(b"damaged")
    if "ALONE" in used:
        shutil.copytree(one_step_run / "checkpoint", folders["ALONE"])
    told = {"RUN": one_step_run, "NOWHERE": tmp_path / "nowhere", **folders}

    def place(argument: str) -> str:
        first, slash, rest = argument.partition("/")
        return f"{told[first]}{slash}{rest}" if first in told else argument

    assert main(["evaluate", *map(place, arguments)]) == status
    error = capsys.readouterr().err.strip().splitlines()
    assert says in error[-1]
    assert error[-1].startswith("mmfusion: ")
    assert not any("Traceback" in line for line in error)


def test_data_brings_its_tasks_and_whoever_asks_for_others_gets_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [shards, _self_]\nroot: /mine\n")
    (tmp_path / "experiment").mkdir()
    recipe = (
        "# @package _global_\ndefaults:\n- override /data: shards\n- override /evaluation: none\nname: x\nsteps: 1\n"
    )
    (tmp_path / "experiment" / "recipe.yaml").write_text(recipe)

    def tasks(*overrides: str) -> set[str]:
        return set(config.compose(overrides, tmp_path).evaluation)

    anything = {"retrieval", "classes", "captions", "answers", "preferred", "rewarded"}
    assert "picture_to_name" in tasks()
    assert tasks("data=shards") == tasks("data=mine") == tasks("evaluation=any") == anything
    assert "picture_to_name" in tasks("data=shards", "evaluation=sample")
    assert tasks("experiment=recipe") == set()
    assert tasks("experiment=recipe", "evaluation=any") == anything
