"""A run folder as it is made, and removed where nothing came of it."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from mmfusion.errors import UserError
from mmfusion.runs.provenance import changes, environment

# What a run writes before its first step is done.
RECORDS = ("config.yaml", "environment.json", "changes.diff", "status.json", "metrics.csv")


class RunError(UserError):
    """A run folder that cannot be made, read or gone on from; the message says what to do."""


def create(folder: Path) -> list[Path]:
    """Make a new run folder, or take an empty one: the paths that are new by that, for `discard`, the outermost last.

    Raises RunError if something is in it or it cannot be written.
    """
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        refuse_used(folder)
        write(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
        if patch := changes():
            write(folder / "changes.diff", patch)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        discard(made)
        reason = error.strerror if isinstance(error, OSError) else error
        remedy = "choose another with paths.runs=FOLDER, or paths.run=FOLDER"
        raise RunError(f"{str(folder)[:200]!r}: cannot write there ({reason}); {remedy}") from error
    return made or [folder / name for name in RECORDS]


def refuse_used(folder: Path) -> None:
    """Raises RunError if something is in the folder."""
    if folder.is_dir() and any(folder.iterdir()):
        remedy = f"choose another with paths.run=FOLDER, or go on with resume={shlex.quote(str(folder))}"
        raise RunError(f"{folder}: is not empty; {remedy}")


def timestamp() -> str:
    """A folder name that sorts by time: `2026-11-24_14-03-59`."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


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
