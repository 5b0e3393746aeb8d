"""Sonic Pi's sounds by kind; the kind is the first word of the file's name.

Package: sonic-pi-samples (CC0). Run `python -m data_prep.sonic_pi`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.common import LICENCES, Account, Packages, by_hash, fold, members, read_one, run, slug, write_source
from data_prep.sounds import RATE_HZ, SILENCE, encode_opus, read_mono
from mmfusion.data.shards import ShardEntry
from mmfusion.types import Part, Sample

FOLDER = "usr/share/sonic-pi/samples/"
LENGTH_S = 2.0
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.07  # of each kind's files; at least one tests

# The name of each kind by the file's first word. `sn` are four snare drums: too few alone, they join the drum kit.
KINDS = {
    "ambi": "ambient noise",
    "bass": "synth bass",
    "bd": "bass drum",
    "drum": "drum kit",
    "sn": "drum kit",
    "elec": "electronic sound",
    "glitch": "glitch",
    "guit": "guitar",
    "loop": "music loop",
    "mehackit": "robots and phones",
    "perc": "percussion",
    "tabla": "tabla",
    "vinyl": "vinyl scratch",
}


def read_sounds(packages: Packages, account: Account) -> dict[str, dict[str, np.ndarray]]:
    """Sounds by kind and stem, float [T], cut to LENGTH_S."""
    kinds: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    package = packages.path("sonic-pi-samples")
    found = members(package, lambda name: name.startswith(FOLDER) and name.endswith(".flac"))
    for name, content in account.progress(sorted(found), 165, "sounds read"):
        stem = PurePosixPath(name).stem
        word = stem.partition("_")[0]
        values = read_mono(content)[: round(LENGTH_S * RATE_HZ)]
        if word not in KINDS:
            account.leave_out("`misc` is no kind", stem)
        elif np.abs(values).max() < SILENCE:
            account.leave_out("near-silent", stem)
        else:
            kinds[KINDS[word]][stem] = values
    return kinds


def make_sample(stem: str, kind: str, values: np.ndarray) -> Sample:
    return Sample(
        key=f"sonic-{stem}",
        parts=(
            Part(type="audio", file="ogg", kind="sound", data=encode_opus(values)),
            Part(type="text", lang="en", text=kind),
        ),
        labels={"concept": slug(kind), "category": "sounds", "kind": slug(kind)},
        source="sonic-pi",
        licence="CC0-1.0",
    )


def build(packages: Packages, out: Path, account: Account) -> list[ShardEntry]:
    kinds = read_sounds(packages, account)
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    for kind, sounds in sorted(kinds.items()):
        if fold(slug(kind)) != "train":
            raise ValueError(f"the kind {kind!r} is no training concept: it needs another name")
        samples = [make_sample(stem, kind, sounds[stem]) for stem in by_hash("file", sounds)]
        test = max(1, round(TEST_SHARE * len(samples)))
        validation = round(VALIDATION_SHARE * len(samples))
        splits["test"] += samples[:test]
        splits["validation"] += samples[test : test + validation]
        splits["train"] += samples[test + validation :]
        account.kept[f"{kind}"] += len(samples)
    readme = read_one(packages.path("sonic-pi-samples"), f"{FOLDER}README.md".__eq__).decode()
    licence = readme + "\n\n" + (LICENCES / "CC0-1.0.txt").read_text()
    return write_source(out, "sonic-pi", splits, licence, account)


if __name__ == "__main__":
    run({"sonic-pi": build})
