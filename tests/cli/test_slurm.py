"""`launcher=slurm`: the script that would be handed in, and that it is handed in as it was printed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from mmfusion import config
from mmfusion.cli.main import main
from tests.cli.trained import fails

HOW = ["launcher=slurm", "launcher.minutes=600", "launcher.partition=a100", "launcher.setup=[module load cuda]"]
LARGE = ["trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=8", "trainer.num_nodes=2", "launcher.memory_gb=64"]


def options(script: str) -> dict[str, str]:
    """The script's `#SBATCH --name=value`."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))


def command(script: str) -> list[str]:
    """What srun is to run, without srun's own words."""
    (line,) = re.findall(r"^srun .*$", script, re.MULTILINE)
    words = shlex.split(line)
    return words[words.index(sys.executable) :]


def test_the_script_asks_for_what_the_trainer_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "a run"
    assert main(["train", *HOW, *LARGE, "name=big", "seed=3", f"paths.run='{run}'", "launcher.dry_run=true"]) == 0
    script = capsys.readouterr().out
    told = options(script)
    assert script.startswith("#!/bin/bash\n")
    expected = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "600", "partition": "a100",
                "mem": "64GB", "job-name": "big", "signal": "TERM@120"}  # fmt: skip
    assert told.items() >= expected.items()
    assert script.index("module load cuda") < script.index("\nsrun ")
    program = command(script)
    assert program[:4] == [sys.executable, "-m", "mmfusion.cli.main", "train"]
    tree = config.compose(program[4:])  # the very command: it composes, to the same run, without the launcher
    assert (tree.seed, tree.trainer.devices, tree.paths.run, tree.get("launcher")) == (3, 8, str(run), None)
    assert list(tmp_path.iterdir()) == []


def test_without_gpus_none_are_asked_for_and_each_run_has_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks that srun starts would each choose one of its own."""
    assert main(["train", "launcher=slurm", "launcher.dry_run=true"]) == 0
    script = capsys.readouterr().out
    told = options(script)
    assert (told["nodes"], told["ntasks-per-node"]) == ("1", "1")
    assert not {"gpus-per-node", "partition", "mem"} & set(told)
    assert any(re.fullmatch(r"paths\.run=\"?runs/quickstart/[\d_-]+\"?", word) for word in command(script))


def test_a_run_goes_on_as_a_job(one_step_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={one_step_run}", "launcher=slurm", "launcher.dry_run=true"]) == 0
    assert command(capsys.readouterr().out)[4:] == [f"resume={one_step_run}"]


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> None:
    """An srun and an sbatch on the path."""
    folder.mkdir()
    for name, text in {"srun": "exit 0", "sbatch": sbatch}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_is_handed_in_is_what_a_dry_run_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path / "bin", monkeypatch, f'cp "$1" {tmp_path}/handed-in; echo Submitted batch job 4217')
    given = ["train", *HOW, *LARGE, f"paths.run={tmp_path / 'runs' / 'one'}"]
    assert main([*given, "launcher.dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert main(given) == 0
    out = capsys.readouterr().out
    assert re.search(r"^job +4217$", out, re.MULTILINE)
    assert (tmp_path / "handed-in").read_text().strip() == printed.strip()
    assert not (tmp_path / "runs" / "one").exists()  # the job makes it


def test_a_folder_that_is_used_is_refused_before_the_job(
    one_step_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path / "bin", monkeypatch, f"touch {tmp_path}/handed-in; echo Submitted batch job 4217")
    status, error = fails(["launcher=slurm", f"paths.run={one_step_run}"], capsys)
    assert status == 1
    assert "is not empty; choose another" in error
    assert not (tmp_path / "handed-in").exists()


@pytest.mark.slow  # a process of its own
def test_a_run_of_m_that_is_handed_in_is_not_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path / "bin", monkeypatch, f"echo x >> {tmp_path}/handed-in; echo Submitted batch job 4217")
    runs = tmp_path / "runs"
    assert main(["train", "-m", "launcher=slurm", "seed=3", f"paths.runs={runs}"]) == 0
    assert (tmp_path / "handed-in").read_text() == "x\n"
    summary = capfd.readouterr().out.partition("\nsummary\n")[2].splitlines()
    assert [line.split()[:2] for line in summary] == [["handed", "in"]]


def test_a_job_that_is_refused_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(tmp_path / "bin", monkeypatch, "echo sbatch: error: invalid partition specified: a100 >&2; exit 1")
    status, error = fails([*HOW, f"paths.runs={tmp_path / 'runs'}"], capsys)
    assert status == 1
    assert "invalid partition specified: a100" in error


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["launcher=slurm"], 'Could not detect "srun"'),
        (["launcher=slrum"], "launcher=slrum: no such option; did you mean 'slurm'?"),
        (
            ["launcher=slurm", "launcher.minute=3"],
            "launcher.minute: Slurm has no such argument; did you mean 'minutes'?",
        ),
        (["launcher=slurm", "launcher.dry_run=true", "trainer.devices=auto"], "trainer.devices: 'auto' is not known"),
        (["launcher=slurm", "launcher.minutes=2"], "launcher.minutes: must be greater than 2"),
        (["launcher=slurm", "name='a\n#SBATCH --account=x'"], "name: must be plain text"),
        ([*HOW, *LARGE, "launcher.gpus_per_node=3"], "launcher.gpus_per_node=3: 8 processes of a node want a GPU each"),
        (["launcher=slurm", "launcher.dry_run=true", "optim.lrr=3"], "optim.lrr: AdamW has no such argument"),
    ],
)
def test_what_cannot_be_handed_in_is_one_line(
    given: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    _, error = fails(given, capsys)
    assert expected in error


def test_in_the_job_the_run_is_not_handed_in_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the user's own experiment chooses the launcher."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    status, error = fails(
        ["launcher=slurm", f"data.root={tmp_path}/nowhere", f"paths.runs={tmp_path / 'runs'}"], capsys
    )
    assert status == 1
    assert "nowhere" in error
