"""What the project says of itself: pinned requirements, imports that point one way, commands that run."""

from __future__ import annotations

import ast
import glob
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

import mmfusion
from data_prep import checks, conversations, preferences
from experiments.first_hour import own_data
from mmfusion.cli.main import main
from mmfusion.sweep import space, winner
from mmfusion.sweep.result import Result, Tried

ROOT = Path(__file__).parent.parent
LATE = ("training", "evaluation", "api", "report", "cli", "config", "runs", "checkpoint", "plan")
# Who may not import what; DESIGN: types <- data, models, objectives <- training, evaluation, api <- report, cli.
_CONFIGURATION = ("hydra", "omegaconf", "wandb")
_TRAINING = (*_CONFIGURATION, "lightning", "webdataset")
_LEARNING = tuple(
    f"mmfusion.{room}" for room in ("models", "objectives", "training", "evaluation", "api", "report", "cli", "plan")
)
FORBIDDEN = {
    "data": (*_CONFIGURATION, *(f"mmfusion.{room}" for room in (*LATE, "models", "objectives"))),
    "models": (*_TRAINING, *(f"mmfusion.{room}" for room in (*LATE, "data", "objectives"))),
    "objectives": (*_TRAINING, *(f"mmfusion.{room}" for room in (*LATE, "data", "models"))),
    "converters": (*_TRAINING, *(f"mmfusion.{room}" for room in (*LATE, "data", "models", "objectives"))),
    "training": ("hydra", "omegaconf", "mmfusion.cli", "mmfusion.report", "mmfusion.evaluation"),
    "evaluation": ("hydra", "omegaconf", "lightning", "mmfusion.cli", "mmfusion.report", "mmfusion.training"),
    "report": ("hydra", "omegaconf", "lightning", "mmfusion.cli", "mmfusion.training"),
    # what these stand on: none learns or shows
    "config": ("lightning", "webdataset", "wandb", "mmfusion.data", "mmfusion.runs", "mmfusion.checkpoint", *_LEARNING),
    "sweep": ("lightning", "webdataset", "wandb", "mmfusion.data", "mmfusion.checkpoint", *_LEARNING),
    "runs": (*_TRAINING, "mmfusion.data", "mmfusion.checkpoint", *_LEARNING),
    "checkpoint": (*_TRAINING, *_LEARNING),
    "plan": (*_TRAINING, "mmfusion.evaluation", "mmfusion.api", "mmfusion.report", "mmfusion.cli", "mmfusion.runs"),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str) -> None:
    for path in (ROOT / "mmfusion" / room).rglob("*.py"):
        if path.name == "datamodule.py":  # the one file of its room that knows Lightning
            continue
        for name in imported(path):
            assert not any(name == no or name.startswith(f"{no}.") for no in FORBIDDEN[room]), f"{path}: {name}"


def test_only_one_place_says_how_wide_what_is_printed_is() -> None:
    makers = {path.name for path in (ROOT / "mmfusion").rglob("*.py") if re.search(r"\bConsole\(", path.read_text())}
    assert makers == {"console.py", "progress.py"}  # the second draws on stderr


def test_the_requirements_file_is_what_the_pins_resolve_to() -> None:
    uv = shutil.which("uv")
    if uv is None or not (ROOT / "uv.lock").exists():
        pytest.skip("only where uv has resolved the project, as `uv run pytest` does")
    flags = ["--no-emit-project", "--no-emit-index-url", "--no-dev", "--no-annotate", "--no-header"]
    made = subprocess.run(
        [uv, "export", "--frozen", *flags, "--format", "requirements-txt"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    kept = (ROOT / "requirements.txt").read_text()
    assert made.stdout == kept
    assert "://" not in kept


def test_version_and_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mmfusion.__version__
    assert project["scripts"]["mmfusion"] == "mmfusion.cli.main:main"
    for name in ("torch", "lightning", "hydra-core", "webdataset", "timm", "sentencepiece", "wandb", "bitsandbytes"):
        assert any(re.match(rf"{name}\b", dependency) for dependency in project["dependencies"])


def readme_commands() -> list[str]:
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line.split("  #")[0].strip() for line in lines if line.startswith("    ") and "uv run" in line]
    return [command.split("uv run ", 1)[1] for command in commands]


def readme_overrides() -> list[str]:
    """What is typed together in the README's table; what stands in parentheses is typed with what is before them."""
    table = (ROOT / "README.md").read_text().partition("## Overrides worth knowing")[2].partition("\n    uv run")[0]
    cells = [line.rsplit("|", 2)[1] for line in table.splitlines() if line.startswith("|")]
    typed = [found for cell in cells for found in re.findall(r"`([^`]+)`(?: \([^`)]*`([^`]+)`\))?", cell)]
    return [" ".join(filter(None, spans)) for spans in typed]


@pytest.mark.parametrize("typed", readme_overrides())
def test_every_override_of_the_readme_is_taken(typed: str, one_step_run: Path) -> None:
    assert main(["config", "--check", *typed.replace("RUN", str(one_step_run)).split()]) == 0


def found_in(folder: Path) -> Result:
    """A sweep over the quickstart's space of one trial, in which everything was at its lower end."""
    _, sweep = space.read("quickstart")
    values = next(sweep.tried())
    one = Tried(0, "done", values, 5.0, None, 1, 150, 30.0, "", folder / "trials" / "000")
    return Result("quickstart", sweep, folder, [one], {})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, one_step_run: Path, few: Path) -> dict[str, Path]:
    """What the README's commands name, made small: own files, their shards, a run on them, the quickstart's run, and
    the data of each stage."""
    folder = tmp_path_factory.mktemp("home")
    table = own_data.make(folder / "own", 0.02)
    shutil.copy(next((folder / "own" / "images").glob("*.png")), folder / "own" / "IMG (1).png")
    small = ["debug=one_step", "evaluation=none", "data.workers=0", "data.batch_size=16"]
    assert main(["data", "pack", str(table), str(folder / "shards")]) == 0
    given = ["data=shards", f"data.root={folder / 'shards'}", f"paths.run={folder / 'runs' / 'mine'}"]
    assert main(["train", *given, *small]) == 0
    for run in ("quickstart/TIME", "answers", "better", "small"):
        shutil.copytree(one_step_run, folder / "runs" / run)
    for script in (checks, conversations, preferences):
        script.prepare(folder / script.__name__.rpartition(".")[2], few)
    winner.write(found_in(folder / "sweeps" / "quickstart"))
    names = ("own", "sweeps", "shards", "checks", "conversations", "preferences", "runs/mine", "runs/quickstart/TIME",
             "runs/answers", "runs/better", "runs/small", "runs", "stats.html", "samples.html", "schema.json",
             "embeddings.parquet")  # fmt: skip
    return {name: folder / name for name in names}


def at_home(word: str, home: Mapping[str, Path]) -> str:
    """A word of a command with the file that it names at its place under `home`."""
    key, equals, value = word.rpartition("=")
    for name, path in home.items():
        if value == name or value.startswith(f"{name}/"):
            return f"{key}{equals}{path}{value.removeprefix(name)}"
    return word


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_runs(
    command: str, home: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = shlex.split(command)
    if program == "pytest":
        # One light file: that all can be collected is seen by whoever runs this.
        light = str(ROOT / "tests" / "config" / "test_overrides.py")
        collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", light]
        ended = subprocess.run(collect, cwd=ROOT, capture_output=True)
        assert ended.returncode == 0
        return
    assert program == "mmfusion"
    if "-m" in arguments:
        pytest.skip("a sweep as a real process is in tests/cli/test_train.py")
    out = {name: tmp_path / name for name in ("stats.html", "samples.html", "schema.json", "embeddings.parquet")}
    places = {**home, **out, **({"shards": tmp_path / "shards"} if arguments[:2] == ["data", "pack"] else {})}
    words = [arguments[0], *(word if word == "data=shards" else at_home(word, places) for word in arguments[1:])]
    words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    if words[0] == "train" and not any(word.startswith("resume=") for word in words):
        words = [word for word in words if not word.startswith(("paths.run=", "steps="))]
        words += ["evaluation=none", "data.workers=0", "data.batch_size=16", f"paths.run={tmp_path / 'run'}"]
        words += [] if "debug=one_step" in words else ["debug=one_step"]
    made = {"stage=finetune": "conversations", "stage=preference": "preferences", "stage=reward": "preferences",
            "stage=policy": "checks"}  # fmt: skip
    for stage in [word for word in words if word in made]:
        words += [f"data.root={home[made[stage]]}", "data.weights=null"]
    if words[0] == "sweep":
        short = ["steps=1", "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "data.batch_size=8"]
        words = ["sweep", words[1], "--folder", str(tmp_path / "sweep"), "--trials", "1", *short, "data.workers=0"]
    if words[0] == "plan":
        words = ["plan", "model=tiny"]
    if words[0] == "runs":
        words = ["runs", "ls"] if len(words) == 1 else words
        words += [] if words[1] == "show" else [str(home["runs"])]
    if "--curve" in words:
        words += ["--task", "sound_kind"]
    if words[0] == "compare":
        words += ["--out", str(tmp_path / "compare.html")]
    assert main(words) == 0


@pytest.mark.slow  # several full runs: half an hour on two cores
@pytest.mark.timeout(7200)
def test_the_readme_in_full(tmp_path: Path) -> None:
    """Its commands one after another as real processes in a clone, as a reader would type them."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    table = own_data.make(clone / "own")
    shutil.copy(next((table.parent / "images").glob("*.png")), clone / "own" / "IMG (1).png")
    for command in readme_commands():
        program, _, arguments = command.partition(" ")
        if program != "mmfusion":
            continue
        if "runs/quickstart/TIME" in command:
            first = min((clone / "runs" / "quickstart").glob("*/config.yaml")).parent  # others have other sizes
            arguments = arguments.replace("runs/quickstart/TIME", str(first))
        typed = f"{shlex.quote(sys.executable)} -m mmfusion.cli.main {arguments}"
        ended = subprocess.run(typed, shell=True, cwd=clone, capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        assert "Traceback" not in ended.stderr


def test_the_notebook_runs_from_top_to_bottom(
    one_step_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMFUSION_RUN", str(one_step_run))
    source = (ROOT / "notebooks" / "01_quickstart.py").read_text()
    exec(compile(source, "01_quickstart.py", "exec"), {"__name__": "__main__"})
    assert "picture_to_name" in capsys.readouterr().out
