"""Shards that are made of other shards: written into a cache on first use, and anew when they would differ."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_prep.common import CACHE, SAMPLE
from mmfusion.data.pack.write import check_out, draft_folder
from mmfusion.data.shards import MANIFEST, ShardSet, read_manifest
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import Sample

SPLITS = ("train", "validation", "test")
Make = Callable[[Path, str], Iterable[Sample]]  # the samples of a split that are made of the shards below a folder


def prepare(out: Path, root: Path, make: Make, scripts: Iterable[Path], only: str | None = None) -> None:
    """Write what `make` makes of the shards below `root` into `out`, unless it is there; whole, or not at all.

    With `only` nothing is made in another place: a folder that somebody names holds their own shards, or is misspelt.

    It is made anew where `scripts` or the shards are no longer the same. Shards in `out` that were not made from others
    are somebody's own, and stay. Raises DataError where something else is there.
    """
    if only is not None and Path(only) != out:
        return
    made_from = digest(root, [Path(__file__), *scripts])
    if (out / MANIFEST).is_file():
        read_manifest(out)
        found = json.loads((out / MANIFEST).read_bytes()).get("made_from")
        if found in (None, made_from):
            return
    check_out(root, out, overwrite=True)
    print(f"{out}: making {out.name} of {root}", flush=True)
    with draft_folder(out) as draft:
        _write(draft, root, make, made_from)


def samples_of(root: Path, split: str) -> Iterator[Sample]:
    """The samples of a split below `root`, in their order."""
    shards = ShardSet(root, split)
    return map(shards.read, range(len(shards)))


def by_source(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by their source, sources by name."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.source or "", []).append(sample)
    return dict(sorted(found.items()))


def asked_alone(root: Path, split: str) -> Callable[[Sample], bool]:
    """Whether a sample of the split may be asked about by its picture alone.

    Of some stamps only voices are held out: a picture that training shows would be asked about again.
    """
    if split == "train":
        return lambda sample: True
    shown = [picture.data for one in samples_of(root, "train") for picture in one.of("image")]
    known = {data for data in shown if isinstance(data, bytes)}
    return lambda sample: sample.of("image")[0].data not in known


def digest(root: Path, scripts: Iterable[Path]) -> str:
    """Of the scripts and of the shards below `root`."""
    whole = hashlib.sha256((root / MANIFEST).read_bytes())
    for script in scripts:
        whole.update(script.read_bytes())
    return whole.hexdigest()


def _write(out: Path, root: Path, make: Make, made_from: str) -> None:
    """A shard for each split and source, and the manifest."""
    entries = []
    for split in SPLITS:
        for source, samples in by_source(make(root, split)).items():
            entries.append(write_shard(out / f"{source}-{split}.tar", samples, split=split, root=out))
    write_manifest(out, entries, made_from)


def main(name: str, prepare: Callable[[Path, Path], None]) -> None:
    """The command line of a script that makes shards of others."""
    parser = argparse.ArgumentParser(description=f"Make {name} of the embedded sample.")
    parser.add_argument("--root", type=Path, default=SAMPLE, help="the sample's folder")
    parser.add_argument("--out", type=Path, default=CACHE / name, help="where the shards go")
    options = parser.parse_args()
    prepare(options.out, options.root)
