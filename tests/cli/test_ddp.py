"""A run of two real processes: the weights of one, and what becomes of both when one is ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mmfusion import config, runs
from mmfusion.cli import launch, ranks
from mmfusion.cli.main import main
from mmfusion.config import ConfigError
from mmfusion.runs import energy, history
from tests.cli.trained import SMALL

TRAIN = [sys.executable, "-m", "mmfusion.cli.main", "train"]


def of_few(few: Path) -> list[str]:
    return [*SMALL, f"data.root={few}", f"data.tokenizer={few / 'tokenizer' / 'tokenizer.model'}"]


def test_two_ranks_end_in_the_weights_of_one(few: Path, tmp_path: Path) -> None:
    """Each has half of every batch, and whole modalities are absent on one of them: four samples of five sources."""
    how = ["steps=2", *of_few(few), "optim.eps=1.0"]  # at Adam's own, gradients that are only noise count as much
    assert main(["train", *how, f"paths.run={tmp_path / 'one'}"]) == 0
    two = subprocess.run(
        [*TRAIN, *how, "trainer=ddp", f"paths.run={tmp_path / 'two'}"], capture_output=True, text=True, check=False
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("run folder") == two.stdout.count("trained 2 steps") == 1  # the first alone speaks
    weights = [load_file(tmp_path / run / "checkpoint" / "model.safetensors") for run in ("one", "two")]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=0, atol=1e-6)
    logged = [history.logged(tmp_path / run) for run in ("one", "two")]
    for name in ("train/loss", "train/captioning", "train/contrastive/image-text"):
        values = [[value for _, value in curves[name]] for curves in logged]
        assert len(values[0]) == 2
        assert values[1] == pytest.approx(values[0], abs=1e-4)
    assert two.stdout.count(f"energy      {energy.line(energy.read(tmp_path / 'two'))}") == 1
    of_one, of_two = (energy.read(tmp_path / run) for run in ("one", "two"))
    assert of_one.training.samples == of_two.training.samples > 0
    assert of_two.sources.keys() == {"cpu"}
    assert of_two.training.total > 0
    assert energy.read(tmp_path / "two").joules >= logged[1]["energy/joules"][1][-1] > 0


@pytest.mark.slow  # two processes, three times
@pytest.mark.parametrize(
    ("who", "how", "status", "last"),
    [
        (1, signal.SIGKILL, 1, "mmfusion: rank 1 was ended by SIGKILL; go on with: "),
        (1, signal.SIGTERM, 143, "stopped; go on with: "),  # whichever hears it, both stop behind one step
        (0, signal.SIGINT, 130, "stopped; go on with: "),
    ],
)
def test_a_rank_that_is_ended_ends_the_run(
    who: int, how: signal.Signals, status: int, last: str, few: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*TRAIN, "trainer=ddp", "steps=5000", *of_few(few), f"paths.run={run}"]
    first = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not runs.resume_points(run):
        time.sleep(0.05)
    (second,) = [p for p in psutil.Process(first.pid).children() if "train" in p.cmdline()]
    (second if who else first).send_signal(how)
    _, error = first.communicate(timeout=60)
    assert first.returncode == status
    assert error.strip().splitlines()[-1].startswith(f"{last}mmfusion train resume={run}")
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    if status != 1:
        assert runs.read(run).status.state == "stopped"


@pytest.mark.slow  # two processes, three times
def test_two_ranks_killed_and_resumed_end_in_the_weights_of_two_never_stopped(few: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = [*TRAIN, "trainer=ddp", "steps=12", "callbacks.resume.every_n_train_steps=2", *of_few(few)]
    subprocess.run([*given, f"paths.run={whole}"], check=True, capture_output=True)
    first = subprocess.Popen([*given, f"paths.run={cut}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while first.poll() is None and not runs.resume_points(cut):
        time.sleep(0.01)
    others = psutil.Process(first.pid).children(recursive=True)
    for process in (*others, psutil.Process(first.pid)):
        process.kill()
    first.wait(timeout=60)
    psutil.wait_procs(others, timeout=60)
    assert not (cut / "report.html").exists()
    subprocess.run([*TRAIN, f"resume={cut}"], check=True, capture_output=True)
    weights = [load_file(run / "checkpoint" / "model.safetensors") for run in (whole, cut)]
    assert all(torch.equal(weights[1][name], expected) for name, expected in weights[0].items())


@pytest.mark.slow  # two processes, twice
def test_each_rank_of_a_run_of_m_has_its_values_and_folder(few: Path, tmp_path: Path) -> None:
    how = ["trainer=ddp", "optim.lr=1e-3,2e-3", "steps=1", *of_few(few), f"paths.runs={tmp_path / 'runs'}"]
    tells = "+callbacks.tells._target_=experiments.sweep.run.TellsRank"
    ended = subprocess.run([*TRAIN, "-m", *how, tells], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "runs" / "quickstart").iterdir()  # no stray one
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
    for name, lr in (("0", 1e-3), ("1", 2e-3)):
        told = [json.loads(path.read_text()) for path in sorted((folder / name).glob("rank-*.json"))]
        assert [(one["optim.lr"], one["ranks"]) for one in told] == [(lr, 2)] * 2
        assert runs.read(folder / name).config["optim"]["lr"] == lr
    assert ended.stdout.count("  done  trainer=ddp optim.lr=") == 2


def test_a_run_of_m_that_has_several_processes_is_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose other ranks repeat its command; its end is told as that of any run."""
    begun: list[list[str]] = []

    class Ended:
        def __init__(self, command: list[str]) -> None:
            begun.append(command)

        def wait(self) -> int:
            return len(begun) - 1  # the second fails

    monkeypatch.setattr(launch, "Child", Ended)
    assert main(["train", "-m", "trainer=ddp", "seed=3,4", f"paths.runs={tmp_path}", "name=two"]) == 1
    for number, command in enumerate(begun):
        assert command[:4] == [sys.executable, "-m", "mmfusion.cli.main", "train"]
        tree = config.compose(command[4:])
        assert (tree.seed, tree.trainer.devices, tree.paths.run.split("/")[-1]) == (3 + number, 2, str(number))
        assert "-m" not in command[4:]
    assert len(begun) == 2
    out = capsys.readouterr().out
    assert "  done  trainer=ddp seed=3" in out
    assert "  failed (1)  trainer=ddp seed=4" in out


def test_ranks_that_another_program_starts_must_be_given_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"paths.run: give the run's folder"):
        ranks.folder_of_all()
    monkeypatch.setenv(ranks.RUN, "runs/one")
    assert ranks.folder_of_all() == "runs/one"


def test_nothing_of_a_run_of_several_stays_in_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with ranks.leading(Path("run")):
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert ranks.folder_of_all() == "run"
    assert ranks.folder_of_all() is None
