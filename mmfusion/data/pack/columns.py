"""What each column of a table is taken for: by what the caller says, else by its name, else by its values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmfusion.data.pack.draft import Settings, modality_of
from mmfusion.data.pack.keys import safe
from mmfusion.data.pack.table import Table
from mmfusion.types import DataError, Modality

MEDIA: tuple[Modality, ...] = ("image", "audio", "sensor")
FIELDS: Mapping[str, str] = {
    "concept": "what is shown: equal values are no negatives of each other",
    "key": "the sample's name",
    "split": "train, validation or test",
    "source": "the source, mixed by its share",
    "licence": "the licence",
    "subject": "who wore the sensors",
    "speaker": "who speaks",
    "lang": "the language of texts and speech",
    "kind": "what the sounds are: speech, sound, music",
    "rate_hz": "measurements a second",
    "start_s": "where the series begin on the sample's clock, in seconds",
    "place": "where the sensor was",
    "channels": "the channels' names, with spaces or commas between",
    "units": "the channels' units, with spaces or commas between",
}
"""Columns that are known by name alone, and what they say."""

_NAMES = re.compile(r"(image|audio|sensor|text|caption|label)(?:[_:](.+))?", re.IGNORECASE)
_WHAT = {"caption": "text"}
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_LOOKED_AT = 100  # values that must all name files of one kind


@dataclass(frozen=True)
class Medium:
    column: str
    modality: Modality
    tag: str  # tells it from others of its modality in the member's name; empty where it is the first


@dataclass
class Columns:
    media: list[Medium] = field(default_factory=list)
    texts: list[tuple[str, str | None]] = field(default_factory=list)  # column, language
    labels: dict[str, str] = field(default_factory=dict)  # label, column
    fields: dict[str, str] = field(default_factory=dict)  # name in FIELDS, column
    groups: list[str] = field(default_factory=list)  # columns
    told: dict[str, str] = field(default_factory=dict)  # column, what it was taken for

    def notes(self, table: Table, lang: str) -> list[str]:
        """A line for each column."""
        width = max(map(len, table.columns))
        told = {name: self.told.get(name, "not used") for name in table.columns}
        for column, language in self.texts:
            told[column] = f"texts in {language or f'{lang!r} where the row does not say (--lang)'}"
        for column in self.groups:
            told[column] = "; ".join(filter(None, (self.told.get(column), "no group of equal values is in two splits")))
        return [f"  {name:{width}}  {what}" for name, what in told.items()]


def is_language(tag: str) -> bool:
    return _LANGUAGE.fullmatch(tag) is not None


def columns_of(table: Table, settings: Settings, path: Path) -> Columns:
    """Raises DataError on a named column that is not there, and where no column is a picture, sound, series or text."""
    made = Columns()
    for what, named in settings.columns.items():
        for given in named:
            column, _, rest = (given, "", "") if given in table.columns else given.partition(":")
            _take(made, _known(column, table, path), what, rest or _rest(column, what))
    if settings.split:
        _take_field(made, _known(settings.split, table, path), "split")
    if settings.group:
        made.groups = [_known(settings.group, table, path)]
    for rule in (_by_name, _by_values):
        for column in table.columns:
            if column not in made.told:
                rule(made, column, table, settings)
    if not made.media and not made.texts:
        raise DataError(
            f"{path}: no column holds pictures, sounds, series or texts ({', '.join(table.columns)}); name one with "
            "--image, --audio, --sensor or --text COLUMN"
        )
    made.groups = made.groups or [made.fields[name] for name in ("subject", "speaker") if name in made.fields]
    return made


def _known(column: str, table: Table, path: Path) -> str:
    if column in table.columns:
        return column
    near = difflib.get_close_matches(column, table.columns, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table.columns)}"
    raise DataError(f"{path}: no column {column!r}; {remedy}")


def _take(made: Columns, column: str, what: str, rest: str = "") -> None:
    """Takes a column for a modality, text (`rest` its language) or label (`rest` its name)."""
    if what == "text":
        if rest and not is_language(rest):
            raise DataError(f"--text {column}:{rest}: {rest!r} is no language such as en or pt-BR")
        made.texts.append((column, rest.replace("_", "-") or None))
        made.told[column] = "text"
    elif what == "label":
        name = rest or ("label" if "label" not in made.labels else column)
        made.labels[name], made.told[column] = column, f"label {rest}".strip()
    else:
        modality: Modality = next(m for m in MEDIA if m == what)
        tags = {medium.tag for medium in made.media if medium.modality == modality}
        tag = safe(rest or column).lower() if rest or tags else ""
        while tag in tags:
            tag += "-2"
        made.media.append(Medium(column, modality, tag))
        made.told[column] = {"image": "pictures", "audio": "sounds", "sensor": "series"}[modality]


def _take_field(made: Columns, column: str, name: str) -> None:
    if name not in made.fields:
        made.fields[name], made.told[column] = column, FIELDS[name]


def _rest(column: str, what: str) -> str:
    """What a name says beyond `what`: `fr` of text_fr, `depth` of image_depth; of a text only a language."""
    match = _NAMES.fullmatch(column)
    rest = match[2] or "" if match and _WHAT.get(match[1].lower(), match[1].lower()) == what else ""
    return rest if what != "text" or is_language(rest) else ""


def _by_name(made: Columns, column: str, table: Table, settings: Settings) -> None:
    """`image`, `text_fr` and the like; `image_width` is no picture and `text_length` no text."""
    if column.lower() in FIELDS:
        _take_field(made, column, column.lower())
    elif match := _NAMES.fullmatch(column):
        what = _WHAT.get(match[1].lower(), match[1].lower())
        rest = _rest(column, what)
        unlike = match[2] and (not rest if what == "text" else what in MEDIA and _kind(table, column) != what)
        if not unlike and not settings.columns.get(what):  # else the caller has said which ones are
            _take(made, column, what, rest)


def _by_values(made: Columns, column: str, table: Table, settings: Settings) -> None:
    """A column whose values end as files of one kind do, unless the caller has named those of its kind."""
    modality = _kind(table, column)
    if modality is not None and not settings.columns.get(modality):
        _take(made, column, modality)


def _kind(table: Table, column: str) -> Modality | None:
    values = [value for value in table.column(column) if value][:_LOOKED_AT]
    kinds: set[Modality | None] = {None if "://" in value else modality_of(value) for value in values}
    return kinds.pop() if len(kinds) == 1 else None


def split_names(cell: str) -> tuple[str, ...]:
    """Names with commas, semicolons or spaces between."""
    return tuple(name for name in re.split(r"[,;\s]+", cell) if name)
