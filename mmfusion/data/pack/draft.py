"""What a layout finds: samples still to be read, and what is said of all of them at once."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmfusion.data.format import PLAIN
from mmfusion.types import Modality, Part, SkipSample

Split = str  # train, validation or test
SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a split is called, in any case, and what it is called in a manifest."""

SUFFIXES: Mapping[str, Modality] = {
    **{suffix: modality for suffix, modality in PLAIN.items() if modality != "text"},
    **dict.fromkeys(("npy", "csv", "tsv"), "sensor"),
}
"""The files that can be packed, by the last piece of their name."""

MAX_BYTES = 1 << 30  # of one file: more than any part within `decode.Limits` needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One part still to be read: `file` is its name for people, `read` gives it with its bytes or raises SkipSample."""

    file: str
    read: Callable[[], Part]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """One sample still to be read. `row` counts from 1; `key` is any text.

    `groups` are all that it must not be parted from; without any, its files are the group.
    """

    row: int
    key: str
    pieces: Callable[[], Iterable[Piece]]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: Split | None = None
    groups: Sequence[str] = ()
    source: str | None = None
    licence: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout makes of a source: `total` drafts, what to tell (`notes`), and what `Draft.groups` are."""

    drafts: Iterator[Draft]
    total: int
    notes: Sequence[str] = ()
    group: str = "file"
    validation: bool = False  # a published split into train and test, of whose train a validation split is made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the caller says of the source: what holds for all samples where nothing nearer says otherwise, and columns.

    `lang` is the language of texts, `kind` that of sounds (speech, sound, music); `rate_hz`, `channels`, `units` and
    `place` are of series, `units` one for all channels or one for each. The rest is for tables: the columns of each
    modality (`text` and `label` too), and the folder that paths start from.
    """

    lang: str = "en"
    kind: str | None = None
    rate_hz: float | None = None
    channels: Sequence[str] = ()
    units: Sequence[str] = ()
    place: str | None = None
    source: str | None = None
    licence: str | None = None
    columns: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    root: Path | None = None

    def part(self, modality: Modality) -> Part:
        """A part of this modality before anything nearer is known."""
        if modality == "sensor":
            return Part(
                type="sensor",
                rate_hz=self.rate_hz,
                place=self.place,
                channels=tuple(self.channels),
                units=tuple(self.units),
            )
        return Part(type=modality, kind=self.kind if modality == "audio" else None)


def modality_of(path: Path | str) -> Modality | None:
    """What a file is by its name; None for kinds that cannot be packed."""
    return SUFFIXES.get(suffix_of(path))


def suffix_of(path: Path | str) -> str:
    """The last piece of a file's name in lower case, without the dot."""
    return Path(path).suffix.lower().removeprefix(".")


def read_bytes(path: Path) -> bytes:
    """A whole file. Raises SkipSample where it is missing, unreadable or too large."""
    try:
        if not path.exists():
            raise SkipSample("missing file")
        if not path.is_file():
            raise SkipSample("no plain file")
        if path.stat().st_size > MAX_BYTES:
            raise SkipSample("file too large", f"{path.stat().st_size} bytes, at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise SkipSample("unreadable file", error.strerror or str(error)) from None


def text_piece(text: str, lang: str | None) -> Piece:
    return Piece(file="", read=lambda: Part(type="text", text=text, lang=lang))


def in_words(label: str) -> str:
    """A label as it would be said: `bar_headed-goose` is bar headed goose."""
    return _parted(label, " ").strip("_ ") or label


def slug(label: str) -> str:
    """A label as a concept: labels that differ in case or in what parts their words are one, all others are not."""
    return _parted(unicodedata.normalize("NFC", label).casefold(), "-")


def _parted(label: str, sign: str) -> str:
    """`sign` for what parts two words; the minus of -5 parts none."""

    def part(found: re.Match[str]) -> str:
        beside = label[found.start() - 1], label[found.end()]
        return sign if all(unicodedata.category(c)[0] in "LMN" for c in beside) else found[0]

    return re.sub(r"(?<=[^\s_-])[\s_-]+(?=[^\s_-])", part, label)
