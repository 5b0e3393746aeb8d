"""metrics.csv: what was logged in training, step by step, also of a run that went on."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from mmfusion.runs.folder import RunError, write

Curves = dict[str, tuple[list[float], list[float]]]  # name: steps, values


def set_history_aside(run: Path, until: int) -> None:
    """Keep the logged rows of the steps before `until`; the logger starts a file of its own when a run goes on."""
    rows = [row for row in _history(run) if float(row["step"]) < until]
    _write_history(run / "metrics.before.csv", rows)
    (run / "metrics.csv").unlink(missing_ok=True)


def bring_history_back(run: Path) -> None:
    """Make one metrics.csv of what was logged before and after a run went on."""
    if (run / "metrics.before.csv").exists():
        _write_history(run / "metrics.csv", _history(run))
        (run / "metrics.before.csv").unlink()


def _history(run: Path) -> list[dict[str, str]]:
    return _joined(run / "metrics.before.csv", run / "metrics.csv")


def _joined(*files: Path) -> list[dict[str, str]]:
    """Rows of the same step and columns once, the later: a killed `bring_history_back` leaves them in both files."""
    rows = (row for path in files for row in _rows(path))
    return list({(float(row["step"]), frozenset(name for name in row if row[name])): row for row in rows}.values())


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if _step(row.get("step")) is not None]
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise RunError(f"{path}: not a log as training writes it ({error})") from error


def _step(cell: str | None) -> float | None:
    """None for what is no step: a killed writer may leave half a line."""
    try:
        step = float(cell or "nan")
    except ValueError:
        return None
    return step if math.isfinite(step) else None


def curves(*files: Path) -> Curves:
    """Every quantity of logs that follow one another, without empty cells; nothing from a file that is not there.

    Raises RunError for a file that is no log.
    """
    found: Curves = {}
    for row in _joined(*files):
        for name, cell in row.items():
            if name and name not in ("step", "epoch") and cell:  # cells beyond the columns have no name
                try:
                    value = float(cell)
                except ValueError:  # half a line
                    continue
                steps, values = found.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(value)
    return found


def logged(run: Path) -> Curves:
    """The curves of a run, also of one that went on and has not ended yet."""
    return curves(run / "metrics.before.csv", run / "metrics.csv")


def _write_history(path: Path, rows: list[dict[str, str]]) -> None:
    columns = sorted({name for row in rows for name in row if name})
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
