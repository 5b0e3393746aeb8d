"""Run folders: `runs/<name>/<time>/`, what is kept in them beside the checkpoint, and what a run can go on from."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfusion.config import SECRET
from mmfusion.errors import UserError

RECORDS = ("config.yaml", "environment.json", "metrics.csv")  # what a run writes before its first step is done
PACKAGES = ("torch", "timm", "lightning", "hydra-core", "webdataset", "sentencepiece", "numpy")


class RunError(UserError):
    """A run folder that cannot be made, or that holds nothing to go on from; the message says what to do."""


def create(folder: Path) -> list[Path]:
    """Make a new run folder, or take an empty one: the paths that are new by that, for `discard`, the outermost last.

    Raises RunError if something is in it or it cannot be written.
    """
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            remedy = f"choose another with paths.run=FOLDER, or go on with resume={folder}"
            raise RunError(f"{folder}: is not empty; {remedy}")
        write(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        discard(made)
        reason = error.strerror if isinstance(error, OSError) else error
        remedy = "choose another with paths.runs=FOLDER, or paths.run=FOLDER"
        raise RunError(f"{str(folder)[:200]!r}: cannot write there ({reason}); {remedy}") from error
    return made or [folder / name for name in RECORDS]


def timestamp() -> str:
    """A folder name that sorts by time: `2026-11-24_14-03-59`."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def environment() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this process."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *(_without_secret(argument) for argument in sys.argv[1:])]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _without_secret(argument: str) -> str:
    key, given, _ = argument.partition("=")
    return f"{key}=***" if given and SECRET.search(key.rpartition(".")[2]) else argument


def commit() -> str | None:
    """The commit of the code that runs, with `+changes` where the work tree differs; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        changes = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+changes" if changes.stdout.strip() else "")


def _processor() -> str:
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return models[0] if models else platform.processor()
    except OSError:
        return platform.processor()


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def discard(made: Sequence[Path]) -> None:
    """Remove what `create` made for a run that never took a step, and the folders above it that are left empty."""
    for path in made:
        try:
            if path.is_file():
                path.unlink()
            elif path == made[0]:
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir():
                path.rmdir()
        except OSError:  # something else is in it by now, or it could not be made
            continue


def step_of(point: Path) -> int:
    """The optimizer steps done at a resume point."""
    return int(point.stem.removeprefix("step="))


def resume_points(run: Path) -> list[Path]:
    """What training can go on from, newest first."""
    points = [point for point in (run / "resume").glob("step=*.ckpt") if re.fullmatch(r"step=\d+", point.stem)]
    return sorted(points, key=step_of, reverse=True)


def set_history_aside(run: Path, until: int) -> None:
    """Keep the logged rows of the steps before `until`; the logger starts a file of its own when a run goes on."""
    rows = [row for row in _history(run) if int(row["step"]) < until]
    _write_history(run / "metrics.before.csv", rows)
    (run / "metrics.csv").unlink(missing_ok=True)


def bring_history_back(run: Path) -> None:
    """Make one metrics.csv of what was logged before and after a run went on."""
    if (run / "metrics.before.csv").exists():
        _write_history(run / "metrics.csv", _history(run))
        (run / "metrics.before.csv").unlink()


def _history(run: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for name in ("metrics.before.csv", "metrics.csv"):
        if (run / name).is_file():
            with (run / name).open(newline="") as file:
                rows += [
                    row for row in csv.DictReader(file) if row.get("step")
                ]  # a killed writer may leave half a line
    return rows


def _write_history(path: Path, rows: list[dict[str, str]]) -> None:
    columns = sorted({name for row in rows for name in row if name})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())


def newest_good(run: Path) -> Path:
    """The newest resume point that can be read whole; broken ones are named on stderr and passed over.

    Raises RunError if the folder is no run or holds none.
    """
    import torch

    if not (run / "config.yaml").is_file():
        raise RunError(f"resume={run}: no run folder (it has no config.yaml)")
    points = resume_points(run)
    if not points:
        raise RunError(f"resume={run}: no resume point was saved yet; start the run again")
    for point in points:
        try:
            with zipfile.ZipFile(point) as parts:
                if broken := parts.testzip():
                    raise ValueError(f"{broken} is not what was written")
            found = torch.load(point, map_location="cpu", weights_only=True, mmap=True)
            if missing := {"state_dict", "global_step", "loops", "optimizer_states"} - set(found):
                raise ValueError(f"no {', '.join(sorted(missing))} in it")
        except Exception as error:  # whatever a damaged file makes the reader raise
            print(f"{point}: damaged ({str(error).splitlines()[0][:120]}); trying the one before", file=sys.stderr)
        else:
            return point
    raise RunError(f"resume={run}: all of its {len(points)} resume points are damaged; start the run again")
