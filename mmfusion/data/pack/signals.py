"""Sounds and series in the published layouts of ESC-50, Speech Commands and UCI-HAR."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mmfusion.data.pack.draft import Draft, Found, Piece, Settings, Split, in_words, slug, text_piece
from mmfusion.data.pack.media import file_piece, series_part
from mmfusion.data.pack.table import read_table
from mmfusion.types import DataError, Part

ESC50_NEEDS = "meta/esc50.csv and audio/*.wav"
COMMANDS_NEED = "validation_list.txt, testing_list.txt and a folder of .wav for each word"
HAR_NEEDS = "activity_labels.txt, train/Inertial Signals/ and test/Inertial Signals/"


def _draft(row: int, key: str, piece: Piece, text: str, settings: Settings, **said: object) -> Draft:
    """One sound or series that is called `text`."""
    pieces = (piece, text_piece(text, settings.lang))
    common = {"pieces": lambda: pieces, "source": settings.source, "licence": settings.licence}
    return Draft(row=row, key=key, **common, **said)  # pyright: ignore[reportArgumentType]


# -------------------------------------------------------------------------------------------------------------- ESC-50

_FOLDS: Mapping[str, Split] = {"1": "train", "2": "train", "3": "train", "4": "validation", "5": "test"}


def is_esc50(source: Path) -> bool:
    return (source / "meta" / "esc50.csv").is_file()


def find_esc50(source: Path, settings: Settings) -> Found:
    """Folds 1 to 3 train, 4 validates, 5 tests; the clips of one recording (src_file) share a fold."""
    path = source / "meta" / "esc50.csv"
    table = read_table(path)
    if lacking := {"filename", "fold", "category", "src_file"}.difference(table.columns):
        raise DataError(f"{path}: no column {min(lacking)!r}; it needs filename, fold, category and src_file")
    rows = [dict(zip(table.columns, row, strict=False)) for row in table.rows]
    if odd := [row for row in rows if row.get("fold") not in _FOLDS]:
        raise DataError(f"{path}: the fold {odd[0].get('fold')!r} is none of {', '.join(_FOLDS)}")
    return Found(
        drafts=(_clip(number, source / "audio", row, settings) for number, row in enumerate(rows, 1)),
        total=len(rows),
        notes=[f"{source}: ESC-50, {len(rows)} clips; folds 1-3 train, 4 validates, 5 tests"],
        group="src_file",
    )


def _clip(number: int, folder: Path, row: Mapping[str, str], settings: Settings) -> Draft:
    name, category = row["filename"], row["category"]
    part = dataclasses.replace(settings.part("audio"), kind=settings.kind or "sound")
    labels = {"label": category, "concept": slug(category), "fold": row["fold"], "recording": row["src_file"]}
    piece = file_piece(folder / Path(name).name, part, name=name)
    said = {"labels": labels, "split": _FOLDS[row["fold"]], "groups": [row["src_file"]]}
    return _draft(number, Path(name).stem, piece, in_words(category), settings, **said)


# ----------------------------------------------------------------------------------------------------- Speech Commands


def is_commands(source: Path) -> bool:
    return all((source / name).is_file() for name in ("validation_list.txt", "testing_list.txt"))


def find_commands(source: Path, settings: Settings) -> Found:
    """The published lists say what validates and tests; a speaker is what stands before `_nohash_`."""
    listed: dict[str, Split] = {}
    lists: Mapping[str, Split] = {"validation_list.txt": "validation", "testing_list.txt": "test"}
    for name, split in lists.items():
        listed |= dict.fromkeys((source / name).read_text(encoding="utf-8").split(), split)
    files = [
        path
        for folder in sorted(source.iterdir())
        if folder.is_dir() and not folder.name.startswith(("_", "."))
        for path in sorted(folder.glob("*.wav"))
    ]
    noises = len(list((source / "_background_noise_").glob("*.wav")))
    notes = [f"{source}: Speech Commands, {len(files)} clips, split by the published lists"]
    notes += [f"  left out, no word: {noises} files of _background_noise_"] if noises else []
    return Found(
        drafts=(_word(row, path, listed, settings) for row, path in enumerate(files, 1)),
        total=len(files),
        notes=notes,
        group="speaker",
    )


def _word(row: int, path: Path, listed: Mapping[str, Split], settings: Settings) -> Draft:
    word, speaker = path.parent.name, path.stem.partition("_nohash_")[0]
    part = Part(type="audio", kind="speech", lang=settings.lang, text=word, speaker=speaker)
    name = f"{word}/{path.name}"
    labels = {"label": word, "concept": slug(word), "speaker": speaker}
    said = {"labels": labels, "split": listed.get(name, "train"), "groups": [speaker]}
    return _draft(row, f"{word}/{path.stem}", file_piece(path, part, name=name), word, settings, **said)


# ------------------------------------------------------------------------------------------------------------- UCI-HAR

_SIGNALS = tuple(f"{signal}_{axis}" for signal in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
_HAR_UNITS = ("g",) * 3 + ("rad/s",) * 3 + ("g",) * 3
_HAR_HZ, _HAR_PLACE = 50.0, "waist"


def is_har(source: Path) -> bool:
    return (source / "activity_labels.txt").is_file() and (source / "train" / "Inertial Signals").is_dir()


def find_har(source: Path, settings: Settings) -> Found:
    """Windows of 128 steps and 9 channels; the published split is by subject, validation is made of train's."""
    activities = dict(line.split(maxsplit=1) for line in _lines(source / "activity_labels.txt"))
    loaded = [(split, *_har_split(source / split, split)) for split in ("train", "test") if (source / split).is_dir()]
    total = sum(len(subjects) for _, _, subjects, _ in loaded)
    return Found(
        drafts=_windows(loaded, activities, settings),
        total=total,
        notes=[f"{source}: UCI-HAR, {total} windows of {len(activities)} activities, split as published"],
        group="subject",
        validation=True,
    )


_HarSplit = tuple[Split, np.ndarray, list[str], list[str]]


def _har_split(folder: Path, split: str) -> tuple[np.ndarray, list[str], list[str]]:
    """(windows[N, T, 9], subject[N], number of the activity[N])."""
    signals = [_matrix(folder / "Inertial Signals" / f"{name}_{split}.txt") for name in _SIGNALS]
    subjects, activities = (_lines(folder / f"{name}_{split}.txt") for name in ("subject", "y"))
    rows = {len(signal) for signal in signals} | {len(subjects), len(activities)}
    if len(rows) != 1 or len({signal.shape for signal in signals}) != 1:
        raise DataError(f"{folder}: its files differ in length ({', '.join(map(str, sorted(rows)))} rows)")
    return np.stack(signals, axis=-1), subjects, activities


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _matrix(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(path, dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: no table of numbers ({error})") from None


def _windows(loaded: list[_HarSplit], activities: Mapping[str, str], settings: Settings) -> Iterator[Draft]:
    row = 0
    for split, windows, subjects, numbers in loaded:
        for i, (values, subject, number) in enumerate(zip(windows, subjects, numbers, strict=True), 1):
            row += 1
            activity = in_words(activities.get(number, number)).lower()
            part = Part(
                type="sensor", rate_hz=_HAR_HZ, place=_HAR_PLACE, subject=subject, channels=_SIGNALS, units=_HAR_UNITS
            )
            piece = Piece(file=f"{split} row {i}", read=lambda values=values, part=part: series_part(values, part))
            labels = {"label": activity, "concept": slug(activity), "activity": slug(activity), "subject": subject}
            said = {"labels": labels, "split": split, "groups": [subject]}
            yield _draft(row, f"{split}-{i:05d}", piece, activity, settings, **said)
