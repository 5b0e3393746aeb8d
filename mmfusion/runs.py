"""Run folders: `runs/<name>/<time>/`, what is kept in them beside the checkpoint, and what a run can go on from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "timm", "lightning", "hydra-core", "webdataset", "sentencepiece", "numpy")


class RunError(Exception):
    """A run folder that cannot be made, or that holds nothing to go on from; the message says what to do."""


def create(folder: Path) -> Path:
    """Make a new run folder. Raises RunError if it exists or cannot be written."""
    try:
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    except FileExistsError as error:
        raise RunError(
            f"{folder}: exists already; choose another with paths.run=FOLDER, or go on: resume={folder}"
        ) from error
    except OSError as error:
        raise RunError(
            f"{folder}: cannot write there ({error.strerror}); choose another with paths.runs=FOLDER"
        ) from error
    return folder


def timestamp() -> str:
    """A folder name that sorts by time: `2026-11-24_14-03-59`."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def environment() -> dict[str, Any]:
    """The machine, the versions, the commit and the command of this process."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


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


def resume_points(run: Path) -> list[Path]:
    """What training can go on from, newest first."""

    def step(path: Path) -> int:
        return int(path.stem.removeprefix("step="))

    return sorted((run / "resume").glob("step=*.ckpt"), key=step, reverse=True)


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
            torch.load(point, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged file makes the reader raise
            print(f"{point}: damaged ({str(error).splitlines()[0][:120]}); trying the one before", file=sys.stderr)
        else:
            return point
    raise RunError(f"resume={run}: all of its {len(points)} resume points are damaged; start the run again")
