"""seglearn's smartwatch series: ten people, both wrists, seven shoulder exercises, 50 Hz.

Package: seglearn (BSD-3-Clause), recorded by Burns et al. 2018, arXiv:1802.01489. Run `python -m data_prep.seglearn`.
Series are stored whole; they are cut into windows when they are read.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common import Account, Packages, by_hash, fold, read_one, run, slug, write_source
from mmfusion.data.shards import ShardEntry
from mmfusion.types import Part, Sample

RATE_HZ = 50.0
TEST_SUBJECTS, VALIDATION_SUBJECTS = 3, 1
# At rest the acceleration's length is close to 1: g. Turning stays below 30, also in strong shakes: rad/s, not degrees.
CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
UNITS = ("g", "g", "g", "rad/s", "rad/s", "rad/s")
# As the paper spells the abbreviations out.
EXERCISES = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "trapezius extension",
    "ROW": "upright row",
}


class ArraysOnly(pickle.Unpickler):
    """Opens the package's pickle of plain numpy arrays; any other name in it is refused, nothing is executed."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_watch(packages: Packages) -> dict[str, Any]:
    """`X` list of float64 [T, 6], `y`, `subject`, `side` arrays [140], `y_labels`."""
    name = "seglearn/data/watch_dataset.npy"
    content = read_one(packages.path("seglearn"), name.__eq__)
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return ArraysOnly(file, encoding="latin1").load().item()


def series_part(values: np.ndarray, place: str, subject: str) -> Part:
    """float16 [T, 6] as npy: its error, 0.0005 at 1 g, is far below the sensor's noise."""
    out = io.BytesIO()
    np.save(out, values.astype(np.float16), allow_pickle=False)
    return Part(
        type="sensor",
        file="npy",
        rate_hz=RATE_HZ,
        place=place,
        subject=subject,
        channels=CHANNELS,
        units=UNITS,
        data=out.getvalue(),
    )


def make_sample(values: np.ndarray, exercise: str, side: str, subject: str) -> Sample:
    name = EXERCISES[exercise]
    return Sample(
        key=f"watch-{subject}-{side}-{exercise.lower()}",
        parts=(series_part(values, f"{side} wrist", subject), Part(type="text", lang="en", text=name)),
        labels={"concept": slug(name), "category": "exercises", "activity": slug(name), "subject": subject},
        source="seglearn",
        licence="BSD-3-Clause",
    )


def build(packages: Packages, out: Path, account: Account) -> list[ShardEntry]:
    for name in EXERCISES.values():
        if fold(slug(name)) != "train":
            raise ValueError(f"the exercise {name!r} is no training concept: it needs another name")
    watch = read_watch(packages)
    subjects = by_hash("subject", {f"s{number:02d}" for number in watch["subject"].tolist()})
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    rows = zip(watch["X"], watch["y"].tolist(), watch["side"].tolist(), watch["subject"].tolist(), strict=True)
    for values, exercise, side, number in rows:
        subject = f"s{number:02d}"
        rank = subjects.index(subject)
        sample = make_sample(values, watch["y_labels"][exercise], "right" if side == 1 else "left", subject)
        held = "test" if rank < TEST_SUBJECTS else "validation"
        splits[held if rank < TEST_SUBJECTS + VALIDATION_SUBJECTS else "train"].append(sample)
        account.kept["seconds"] += round(len(values) / RATE_HZ)
    account.kept.update({f"{split} subjects": len({s.labels["subject"] for s in splits[split]}) for split in splits})
    licence = read_one(packages.path("seglearn"), lambda n: n.endswith("/LICENSE"))
    return write_source(out, "seglearn", splits, licence.decode(), account)


if __name__ == "__main__":
    run({"seglearn": build})
