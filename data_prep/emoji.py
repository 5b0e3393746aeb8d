"""Emoji of two vendors with their names: Google's pictures train, Twitter's are touched by the test alone.

Packages: emoji-datasource-google, emoji-datasource-twitter (pictures, categories), cldr-annotations-full and
cldr-annotations-derived-full (names). Run `python -m data_prep.emoji`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from data_prep import cldr
from data_prep.common import LICENCES, Account, Build, Fold, Packages, fold, members, read_one, run, slug, write_source
from data_prep.pictures import small_png
from mmfusion.data.shards import ShardEntry
from mmfusion.types import Part, Sample

Vendor = Literal["google", "twitter"]

SIZE_PX, COLOURS = 48, 64
VENDOR_LICENCE = {"google": "Apache-2.0", "twitter": "CC-BY-4.0"}
# Other languages that the test vendor's samples carry: one or two of each region, as many as space allows.
TEST_LANGUAGES = ("en", "fr", "es", "ru", "el", "ar", "hi", "ja", "ko", "zh")


@dataclass(frozen=True)
class Emoji:
    """One base emoji: its code as in the picture's file name, its names by language, its concept and categories."""

    code: str
    names: dict[str, str]
    concept: str
    category: str
    subcategory: str


def read_emoji(packages: Packages) -> list[Emoji]:
    """All base emoji in the order of their codes."""
    names = cldr.read_names(packages)
    listed = read_one(packages.path("emoji-datasource-google"), "emoji.json".__eq__)
    emoji = []
    for entry in json.loads(listed):
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        own = {language: cldr.name_of(character, names[language]) for language in cldr.LANGUAGES}
        code = entry["image"].removesuffix(".png")
        emoji.append(Emoji(code, own, slug(own["en"]), slug(entry["category"]), slug(entry["subcategory"])))
    return sorted(emoji, key=lambda e: e.code)


def read_pictures(packages: Packages, vendor: Vendor, emoji: Sequence[Emoji], account: Account) -> dict[str, bytes]:
    """A small PNG for each code."""
    paths = {f"img/{vendor}/64/{e.code}.png": e.code for e in emoji}
    found = members(packages.path(f"emoji-datasource-{vendor}"), paths.__contains__)
    shown = account.progress(found, len(paths), f"pictures of {vendor}")
    return {paths[path]: small_png(content, SIZE_PX, COLOURS) for path, content in shown}


def training_folds(emoji: Sequence[Emoji], pictures: dict[str, bytes]) -> dict[str, Fold | None]:
    """The fold of each code; None for a training vendor's picture that a held-out concept shares to the last pixel.

    (Bouvet's flag is Norway's: training on the one would show the other.) Of a picture shared between validation and
    training, validation keeps it.
    """
    by_picture: dict[bytes, set[Fold]] = {}
    for e in emoji:
        by_picture.setdefault(pictures[e.code], set()).add(fold(e.concept))
    folds: dict[str, Fold | None] = {}
    for e in emoji:
        own, shared = fold(e.concept), by_picture[pictures[e.code]]
        hidden = ("held-out" in shared and own != "held-out") or ("validation" in shared and own == "train")
        folds[e.code] = None if hidden else own
    return folds


def make_sample(e: Emoji, vendor: Vendor, languages: Sequence[str], picture: bytes, **labels: str) -> Sample:
    texts = tuple(Part(type="text", lang=language, text=e.names[language]) for language in languages)
    return Sample(
        key=f"{vendor}-{e.code}",
        parts=(Part(type="image", file="png", data=picture), *texts),
        labels={
            "concept": e.concept,
            "category": e.category,
            "subcategory": e.subcategory,
            "vendor": vendor,
            **labels,
        },
        source=f"emoji-{vendor}",
        licence=f"{VENDOR_LICENCE[vendor]} AND Unicode-3.0",
    )


def build(packages: Packages, out: Path, account: Account, *, vendor: Vendor) -> list[ShardEntry]:
    emoji = read_emoji(packages)
    pictures = read_pictures(packages, "google", emoji, account)
    folds = training_folds(emoji, pictures)
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    if vendor == "twitter":
        pictures = read_pictures(packages, "twitter", emoji, account)
    for e in emoji:
        own = folds[e.code]
        if vendor == "twitter":
            labels = {"seen": "yes" if own == "train" else "no", "fold": own or "left-out"}
            splits["test"].append(make_sample(e, vendor, TEST_LANGUAGES, pictures[e.code], **labels))
            account.kept[f"test concepts, fold {labels['fold']}"] += 1
        elif own is None:
            account.leave_out("same picture as a concept that is held out or validates", e.names["en"])
        elif own == "held-out":
            account.leave_out("concept held out", e.names["en"])
        else:
            splits[own].append(make_sample(e, vendor, cldr.LANGUAGES, pictures[e.code]))
    head = f"Pictures: {VENDOR_LICENCE[vendor]}. Names: Unicode-3.0. Both texts follow.\n\n"
    licence = head + (LICENCES / f"{VENDOR_LICENCE[vendor]}.txt").read_text() + "\n\n" + cldr.licence(packages)
    return write_source(out, f"emoji-{vendor}", splits, licence, account)


SCRIPTS: dict[str, Build] = {
    "emoji-google": partial(build, vendor="google"),
    "emoji-twitter": partial(build, vendor="twitter"),
}

if __name__ == "__main__":
    run(SCRIPTS)
