"""Tux Paint's stamps that have a picture, a sound of their own and six or more spoken languages.

Package: tuxpaint-stamps-default (GPL-2). Run `python -m data_prep.tux_stamps`.

A stamp of a training concept gives one sample of the train split (picture, captions, spoken names, sound), and for each
of its held-out languages a sample `STEM-LANG` in test or validation: the picture again, the caption and the clips in
that language, all three out of training. A stamp of another concept stands wholly in one split.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data_prep.common import (
    LEFT_OUT_LANGUAGES,
    LICENCES,
    Account,
    Packages,
    by_hash,
    fold,
    fraction,
    members,
    read_one,
    run,
    slug,
    write_source,
)
from data_prep.pictures import is_visible, small_png
from data_prep.sounds import RATE_HZ, SILENCE, encode_opus, is_clipped, read_mono
from mmfusion.data.shards import ShardEntry
from mmfusion.types import Part, Sample

FOLDER = "usr/share/tuxpaint/stamps/"
SIZE_PX, COLOURS = 64, 128
MIN_LANGUAGES = 6
MAX_SPEECH_S = 6.0  # longer clips explain the rules of a game
MAX_SOUND_S = 4.0  # of the own sound, cut there
MAX_CHARACTERS_PER_S = 20.0  # faster than anyone speaks: the caption is not what is said
TEST_SHARE, VALIDATION_SHARE = 0.06, 0.06  # of the clips, beside the one clip of each stamp that always tests

# Locales of the captions that nearly repeat another one's.
REPEATS = frozenset({"en_AU", "en_GB", "ca@valencia"})
BCP47 = {"zh_CN": "zh", "zh_TW": "zh-Hant", "sr@latin": "sr-Latn", "pt_BR": "pt-BR"}


@dataclass
class Stamp:
    """One stamp: its files' bytes, then its captions, clips and sound by language."""

    path: str
    files: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    clips: dict[str, Part] = field(default_factory=dict)
    sound: Part | None = None

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def concept(self) -> str:
        """From the English caption without its article and full stop: `A frog.` is the emoji's `frog`."""
        return slug(re.sub(r"^(an?|the)\s", "", self.captions["en"], flags=re.IGNORECASE))


def read_stamps(packages: Packages, account: Account) -> list[Stamp]:
    """The stamps that have what is asked, in the order of their paths, nothing decoded yet."""
    stamps: dict[str, Stamp] = {}
    endings = re.compile(r"(\.png|\.svg|\.txt|\.ogg|_desc\.ogg|_desc_[A-Za-z_@]+\.ogg)$")
    wanted = members(packages.path("tuxpaint-stamps-default"), lambda name: name.startswith(FOLDER))
    for name, content in account.progress(wanted, 10_200, "files read"):
        if match := endings.search(name):
            path = name[len(FOLDER) : match.start()]
            stamps.setdefault(path, Stamp(path)).files[match[0]] = content
    kept = []
    for path in sorted(stamps):
        stamp = stamps[path]
        spoken = {_clip_language(ending) for ending in stamp.files if ending.startswith("_desc")}
        if not {".ogg", ".txt"} < set(stamp.files) or len(spoken - LEFT_OUT_LANGUAGES) < MIN_LANGUAGES:
            continue
        if path.startswith("symbols/"):
            account.leave_out("letters, digits and signs", path)
        elif ".svg" in stamp.files and ".png" not in stamp.files:
            account.leave_out("drawn as SVG only, which nothing here can render", path)
        elif ".png" not in stamp.files:
            account.leave_out("no picture of that name", path)
        elif not is_visible(stamp.files[".png"]):
            account.leave_out("white on transparent: nothing to see on white", path)
        else:
            kept.append(stamp)
    return kept


def _clip_language(ending: str) -> str:
    return ending.removeprefix("_desc").removesuffix(".ogg").removeprefix("_") or "en"


def read_captions(stamp: Stamp, account: Account) -> dict[str, str]:
    """All captions by language, English first; the first line is English, the others say `fr.utf8=…`."""
    first, *others = stamp.files[".txt"].decode("utf-8").splitlines()
    captions = {"en": first.strip()}
    for line in sorted(others):
        locale, _, text = line.partition(".utf8=")
        if locale in REPEATS:
            account.leave_out("caption that nearly repeats another locale's", f"{stamp.stem} {locale}")
        elif locale not in LEFT_OUT_LANGUAGES and text.strip():
            captions[BCP47.get(locale, locale)] = text.strip()
    return captions


def read_clips(stamp: Stamp, heard: dict[bytes, str], account: Account) -> dict[str, Part]:
    """The spoken names by language; what was heard at another stamp already is left out."""
    clips = {}
    for ending in sorted(stamp.files):
        language, where = _clip_language(ending), f"{stamp.stem} {ending[1:]}"
        if not ending.startswith("_desc") or language in LEFT_OUT_LANGUAGES:
            continue
        content = stamp.files[ending]
        if heard.setdefault(content, where) != where:
            account.leave_out("clip identical to another stamp's", where)
            continue
        if language not in stamp.captions:
            account.leave_out("clip without text", where)
            continue
        values = read_mono(content)
        if np.abs(values).max(initial=0.0) < SILENCE:
            account.leave_out("near-silent clip", where)
        elif len(values) > MAX_SPEECH_S * RATE_HZ:
            account.leave_out(f"clip longer than {MAX_SPEECH_S:.0f} s", where)
        else:
            account.kept["clips kept though cut off at full scale"] += is_clipped(content)
            clips[language] = _speech(values, language, stamp.captions[language], account)
    return clips


def _speech(values: np.ndarray, language: str, caption: str, account: Account) -> Part:
    fits = len(caption) <= MAX_CHARACTERS_PER_S * len(values) / RATE_HZ
    account.kept["clips kept without transcript, caption too long for them"] += not fits
    return Part(
        type="audio",
        file=f"{language}.ogg",
        kind="speech",
        lang=language,
        text=caption if fits else None,
        speaker=f"tux-{language}",
        data=encode_opus(values),
    )


def read_sound(stamp: Stamp, account: Account) -> Part | None:
    values = read_mono(stamp.files[".ogg"])
    if np.abs(values).max(initial=0.0) < SILENCE:
        account.leave_out("near-silent own sound (the stamp stays)", stamp.stem)
        return None
    kept = values[: round(MAX_SOUND_S * RATE_HZ)]
    return Part(type="audio", file="sound.ogg", kind="sound", data=encode_opus(kept))


def held_out_languages(stamps: list[Stamp]) -> dict[tuple[str, str], str]:
    """The split of each (concept, language) that is not for training: the same for all stamps of a concept.

    Each concept's first clip by hash tests, so that every stamp is asked for; of the others a few test or validate.
    English stays: its caption is the stamp's name.
    """
    splits = {}
    for concept in sorted({stamp.concept for stamp in stamps}):
        spoken = {language for stamp in stamps if stamp.concept == concept for language in stamp.clips} - {"en"}
        for rank, pair in enumerate(by_hash("clip", (f"{concept}:{language}" for language in spoken))):
            language = pair.rpartition(":")[2]
            place = fraction("clip split", pair)
            if rank == 0 or place < TEST_SHARE:
                splits[concept, language] = "test"
            elif place < TEST_SHARE + VALIDATION_SHARE:
                splits[concept, language] = "validation"
    return splits


def caption_parts(stamp: Stamp, languages: list[str]) -> list[Part]:
    """Captions as text parts; a translation that repeats the English says nothing and is left out."""
    english = stamp.captions["en"].casefold()
    return [
        Part(type="text", lang=language, text=stamp.captions[language])
        for language in languages
        if language == "en" or stamp.captions[language].casefold() != english
    ]


def make_sample(stamp: Stamp, key: str, captions: list[str], spoken: list[str], sound: bool, **labels: str) -> Sample:
    category, *deeper = PurePosixPath(stamp.path).parts[:-1]
    picture = Part(type="image", file="png", data=small_png(stamp.files[".png"], SIZE_PX, COLOURS))
    clips = [stamp.clips[language] for language in spoken]
    sounds = [stamp.sound] if sound and stamp.sound else []
    return Sample(
        key=key,
        parts=(picture, *caption_parts(stamp, captions), *clips, *sounds),
        labels={
            "concept": stamp.concept,
            "category": category,
            "subcategory": "-".join(deeper) or category,
            "stamp": stamp.stem,
            **labels,
        },
        source="tux-stamps",
        licence="GPL-2.0",
    )


def split_stamps(stamps: list[Stamp], account: Account) -> dict[str, list[Sample]]:
    """Deal the stamps out as the module says; counts go to the account."""
    splits: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    away = held_out_languages(stamps)
    for stamp in stamps:
        own, captions, spoken = fold(stamp.concept), list(stamp.captions), list(stamp.clips)
        if own != "train":
            split = "test" if own == "held-out" else "validation"
            splits[split].append(make_sample(stamp, stamp.stem, captions, spoken, True, seen="no", fold=own))
            account.kept[f"{split} clips of whole stamps"] += len(spoken)
            continue
        gone = {language for (concept, language) in away if concept == stamp.concept}
        left = [language for language in captions if language not in gone]
        heard = [language for language in spoken if language not in gone]
        splits["train"].append(make_sample(stamp, stamp.stem, left, heard, True))
        account.kept["train clips"] += len(heard)
        for language in [language for language in spoken if language in gone]:
            split = away[stamp.concept, language]
            key = f"{stamp.stem}-{language}"
            splits[split].append(make_sample(stamp, key, [language], [language], False, seen="yes", fold="train"))
            account.kept[f"{split} clips"] += 1
    return splits


def build(packages: Packages, out: Path, account: Account) -> list[ShardEntry]:
    stamps = read_stamps(packages, account)
    heard: dict[bytes, str] = {}
    for stamp in account.progress(stamps, len(stamps), "stamps encoded"):
        stamp.captions = read_captions(stamp, account)
        stamp.clips = read_clips(stamp, heard, account)
        stamp.sound = read_sound(stamp, account)
    account.kept["stamps"] = len(stamps)
    languages = Counter(language for stamp in stamps for language in stamp.clips)
    account.kept.update({f"clips in {language}": count for language, count in languages.items()})
    copyright_ = read_one(packages.path("tuxpaint-stamps-default"), lambda name: name.endswith("/copyright"))
    licence = copyright_.decode() + "\n\n" + (LICENCES / "GPL-2.0.txt").read_text()
    return write_source(out, "tux-stamps", split_stamps(stamps, account), licence, account)


if __name__ == "__main__":
    run({"tux-stamps": build})
