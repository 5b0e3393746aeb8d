"""A folder by class, and tars as img2dataset writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmfusion.data.index import ShardIndex
from mmfusion.data.pack.draft import (
    SPLITS,
    Draft,
    Found,
    Piece,
    Settings,
    Split,
    in_words,
    modality_of,
    slug,
    suffix_of,
    text_piece,
)
from mmfusion.data.pack.media import file_piece
from mmfusion.types import DataError

FOLDERS_NEED = "a folder by class (cats/*.jpg, dogs/*.wav), with train/, validation/ and test/ above them or not"
TARS_NEED = "a .tar, or a folder of them, of samples as img2dataset writes them (key.jpg + key.txt)"


def classes_of(source: Path) -> dict[Path, Split | None]:
    """The folders by class, each with its split where all first folders are splits."""
    first = _folders(source)
    if first and all(folder.name.lower() in SPLITS for folder in first):
        return {inner: SPLITS[folder.name.lower()] for folder in first for inner in _folders(folder)}
    return dict.fromkeys(first)


def _folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def _refuse_strays(source: Path) -> None:
    """Raises DataError where folders stand beside splits of classes: all would be classes, `train` one of them."""
    first = _folders(source)
    splits = [folder.name for folder in first if folder.name.lower() in SPLITS and _folders(folder)]
    strays = [folder.name for folder in first if folder.name.lower() not in SPLITS]
    if splits and strays:
        raise DataError(
            f"{source}: {', '.join(strays)} beside the splits {', '.join(splits)}; move what is no split elsewhere"
        )


def files_below(folder: Path) -> list[Path]:
    """Every file that is not hidden, at any depth, in the order of names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(piece.startswith(".") for piece in path.relative_to(folder).parts)
    )


def find_folders(source: Path, settings: Settings) -> Found:
    """Every picture, sound or series a sample; its class is its concept, its label and, in words, its text.

    Raises DataError where folders that are no splits stand beside splits.
    """
    _refuse_strays(source)
    files: list[tuple[Path, str, Split | None]] = []
    others = Counter[str]()
    for folder, split in classes_of(source).items():
        for path in files_below(folder):
            if modality_of(path) is None:
                others[f".{suffix_of(path)}"] += 1
            else:
                files.append((path, folder.name, split))
    names = sorted({name for _, name, _ in files})
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    notes = [f"{source}: {len(files)} files in {len(names)} classes: {shown}"]
    if others:
        notes.append(f"  left out, no picture, sound or series: {_counted(others)}")
    return Found(
        drafts=(_draft(source, row, *file, settings) for row, file in enumerate(files, 1)),
        total=len(files),
        notes=notes,
    )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


def _draft(source: Path, row: int, path: Path, name: str, split: Split | None, settings: Settings) -> Draft:
    file = path.relative_to(source)
    modality = modality_of(path)
    assert modality is not None
    pieces = (file_piece(path, settings.part(modality), name=str(file)), text_piece(in_words(name), settings.lang))
    return Draft(
        row=row,
        key=str(file.with_suffix("")),
        pieces=lambda: pieces,
        labels={"label": name, "concept": slug(name)},
        split=split,
        source=settings.source,
        licence=settings.licence,
    )


# ---------------------------------------------------------------------------------------------------------------- tars


def tars_of(source: Path) -> list[Path]:
    return sorted(source.glob("*.tar")) if source.is_dir() else [source]


def find_tars(source: Path, settings: Settings) -> Found:
    """Every key a sample; a text that names no language is in `settings.lang`. Raises DataError on a broken tar."""
    indexes = [ShardIndex(path) for path in tars_of(source)]
    total = sum(map(len, indexes))
    return Found(
        drafts=_tar_drafts(indexes, settings),
        total=total,
        notes=[f"{source}: {total} samples in {len(indexes)} tars"],
    )


def _tar_drafts(indexes: Iterable[ShardIndex], settings: Settings) -> Iterator[Draft]:
    row = 0
    for index in indexes:
        for i, key in enumerate(index.keys):
            row += 1
            yield Draft(
                row=row,
                key=key,
                pieces=lambda index=index, i=i: _tar_pieces(index, i, settings),
                source=settings.source,
                licence=settings.licence,
            )


def _tar_pieces(index: ShardIndex, i: int, settings: Settings) -> Iterator[Piece]:
    """Raises SkipSample where the sample cannot be read."""
    for part in index.read(i).parts:
        if part.type == "text" and part.text and part.lang is None:
            yield text_piece(part.text, settings.lang)
        else:
            yield Piece(file=f"{index.path.name}: {index.keys[i]}.{part.file}", read=lambda part=part: part)
