"""What kinds of source there are, how each is recognised, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmfusion.data.pack import captions, folders, rows, signals, table
from mmfusion.data.pack.draft import Found, Settings, modality_of
from mmfusion.data.shards import MANIFEST
from mmfusion.types import DataError


@dataclass(frozen=True)
class Layout:
    is_it: Callable[[Path], bool]
    find: Callable[[Path, Settings], Found]
    needs: str


def _is_folders(source: Path) -> bool:
    return any(modality_of(file) for folder in folders.classes_of(source) for file in folders.files_below(folder))


def _in_folder(is_it: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda source: source.is_dir() and is_it(source)


LAYOUTS: Mapping[str, Layout] = {
    "table": Layout(lambda source: source.is_file() and table.is_table(source), rows.find, rows.NEEDS),
    "coco": Layout(_in_folder(captions.is_coco), captions.find_coco, captions.COCO_NEEDS),
    "flickr30k": Layout(
        _in_folder(lambda source: captions.flickr_folder(source) is not None),
        captions.find_flickr,
        captions.FLICKR_NEEDS,
    ),
    "esc50": Layout(_in_folder(signals.is_esc50), signals.find_esc50, signals.ESC50_NEEDS),
    "speech-commands": Layout(_in_folder(signals.is_commands), signals.find_commands, signals.COMMANDS_NEED),
    "uci-har": Layout(_in_folder(signals.is_har), signals.find_har, signals.HAR_NEEDS),
    "tars": Layout(
        lambda source: source.suffix == ".tar" if source.is_file() else bool(folders.tars_of(source)),
        folders.find_tars,
        folders.TARS_NEED,
    ),
    "folders": Layout(_in_folder(_is_folders), folders.find_folders, folders.FOLDERS_NEED),
}
"""In the order in which they are tried."""


def recognise(source: Path, asked: str | None = None) -> tuple[str, Layout]:
    """The layout of `source`, or the one that was asked for. Raises DataError where it is not laid out so."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if (source / MANIFEST).is_file():
        raise DataError(f"{source}: is packed already (it has a {MANIFEST}); train with data.root={source}")
    if asked is not None:
        if not LAYOUTS[asked].is_it(source):
            raise DataError(f"{source}: is not laid out as {asked}, which needs {LAYOUTS[asked].needs}")
        return asked, LAYOUTS[asked]
    for name, layout in LAYOUTS.items():
        if layout.is_it(source):
            return name, layout
    known = "; ".join(f"{name}: {layout.needs}" for name, layout in LAYOUTS.items())
    raise DataError(f"{source}: no layout that is known. {known}")
