"""What a run can go on from."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

from mmfusion.runs.folder import RunError

ENDED = "ended"  # beside the points: the step that training ended with, planned or stopped early


def ended_at(run: Path) -> int | None:
    """The step that a run's training ended with; None while it has not, or where that step's point is gone."""
    try:
        step = int((run / "resume" / ENDED).read_text())
    except (OSError, ValueError):
        return None
    return step if (run / "resume" / f"step={step}.ckpt").is_file() else None


def step_of(point: Path) -> int:
    """The optimizer steps done at a resume point."""
    return int(point.stem.removeprefix("step="))


def resume_points(run: Path) -> list[Path]:
    """What training can go on from, newest first."""
    points = [point for point in (run / "resume").glob("step=*.ckpt") if re.fullmatch(r"step=\d+", point.stem)]
    return sorted(points, key=step_of, reverse=True)


def require_points(run: Path) -> list[Path]:
    """`resume_points`; raises RunError if the folder is no run or holds none."""
    if not (run / "config.yaml").is_file():
        raise RunError(f"resume={run}: no run folder (it has no config.yaml)")
    if points := resume_points(run):
        return points
    raise RunError(f"resume={run}: no resume point was saved yet; start the run again")


def newest_good(run: Path) -> Path:
    """The newest resume point that can be read whole; broken ones are named on stderr and passed over.

    Raises RunError if the folder is no run or holds none.
    """
    import torch

    points = require_points(run)
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
