"""A folder as a stranger has it, files and a table, made of the embedded sample's own media.

    uv run python experiments/first_hour/own_data.py FOLDER

Pictures with a name in English, clips with a kind, watch series as CSV with an activity and whose wrist it was.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from mmfusion.data.media import npy_array
from mmfusion.data.shards import ShardSet
from mmfusion.types import Part, Sample

SAMPLE = Path(__file__).parent.parent.parent / "data_prep" / "sample"
COLUMNS = ("image", "audio", "sensor", "text", "label", "subject")
MOST = {"emoji-google": 600, "sonic-pi": 150, "tux-stamps": 150, "seglearn": 100}


def make(folder: Path, share: float = 1.0) -> Path:
    """The table's path; `share` of the usual thousand rows."""
    folder.mkdir(parents=True, exist_ok=True)
    left = {source: max(4, round(most * share)) for source, most in MOST.items()}
    rows = []
    for sample in ShardSet(SAMPLE, "train"):
        source = sample.source or ""
        if left.get(source, 0) and (row := _row(folder, sample)):
            left[source] -= 1
            rows.append(row)
    with (folder / "things.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows(rows)
    return folder / "things.csv"


def _row(folder: Path, sample: Sample) -> dict[str, str]:
    """One row, its media written; the English name and the first part of each kind."""
    row = {}
    for part in sample.parts:
        if part.type in ("image", "audio", "sensor") and part.type not in row:
            row[part.type] = _write(folder, sample.key, part)
            row |= {"subject": part.subject} if part.subject else {}
        elif part.type == "text" and part.lang == "en" and part.text:
            row.setdefault("text", part.text)
    label = sample.labels.get("activity") or sample.labels.get("kind")
    return row | ({"label": label} if label else {})


def _write(folder: Path, key: str, part: Part) -> str:
    assert isinstance(part.data, bytes)
    assert part.file is not None
    suffix = "csv" if part.type == "sensor" else part.file.rpartition(".")[2]
    name = f"{part.type}s/{key.replace('/', '_')} ({part.file.split('.')[0]}).{suffix}"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_series(part) if part.type == "sensor" else part.data)
    return name


def _series(part: Part) -> bytes:
    """A series as most people keep one: a header with units, a column of seconds, five digits."""
    assert isinstance(part.data, bytes)
    values = npy_array(part.data).astype(np.float64)
    times = np.arange(len(values)) / (part.rate_hz or 1.0)
    header = ["time_s", *(f"{channel} ({unit})" for channel, unit in zip(part.channels, part.units, strict=True))]
    lines = [",".join(f"{value:.5g}" for value in row) for row in np.column_stack([times, values]).tolist()]
    return "\n".join([",".join(header), *lines, ""]).encode()


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
