"""Pictures with captions in the published layouts of COCO and Flickr30k (Flickr8k is laid out alike)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmfusion.data.pack.draft import Draft, Found, Piece, Settings, Split, text_piece
from mmfusion.data.pack.media import file_piece
from mmfusion.types import DataError

COCO_NEEDS = "annotations/captions_train2017.json and captions_val2017.json beside train2017/ and val2017/"
FLICKR_NEEDS = "results_20130124.token or captions.txt beside flickr30k_images/, flickr30k-images/ or Images/"

# The pictures of COCO's test have no public captions: what is reported are those of val.
_SPLITS: Mapping[str, Split] = {"train": "train", "val": "test"}
_IMAGES = ("flickr30k_images", "flickr30k-images", "Images")


def is_coco(source: Path) -> bool:
    return bool(_coco_files(source))


def _coco_files(source: Path) -> list[tuple[Path, Path, Split]]:
    """(captions, pictures' folder, split) of every year that is there with its pictures."""
    found = []
    for path in sorted((source / "annotations").glob("captions_*.json")):
        if match := re.fullmatch(r"captions_((train|val)\d{4})", path.stem):
            folders = [folder for folder in (source / match[1], source / "images" / match[1]) if folder.is_dir()]
            found += [(path, folder, _SPLITS[match[2]]) for folder in folders[:1]]
    return found


def find_coco(source: Path, settings: Settings) -> Found:
    """Every picture a sample with all its captions."""
    pictures = [
        (folder / name, str(Path(folder.name) / name), captions, split)
        for path, folder, split in _coco_files(source)
        for name, captions in _coco_captions(path)
    ]
    notes = [f"{source}: COCO captions of {len(pictures)} pictures; val is the test split, as results are reported"]
    return _found(pictures, settings, notes, validation=True)


def _coco_captions(path: Path) -> list[tuple[str, list[str]]]:
    """(picture's file name, its captions) in the order of the list of pictures; those without a caption left out."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        captions: dict[int, list[str]] = {}
        for annotation in listed["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
        return [(str(i["file_name"]), captions[i["id"]]) for i in listed["images"] if i["id"] in captions]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no COCO captions ({error!r:.100}); it needs `images` and `annotations`") from None


def flickr_folder(source: Path) -> Path | None:
    """The pictures of Flickr30k, if its captions are beside them."""
    if not any((source / name).is_file() for name in ("results_20130124.token", "captions.txt")):
        return None
    return next((source / name for name in _IMAGES if (source / name).is_dir()), None)


def find_flickr(source: Path, settings: Settings) -> Found:
    """Every picture a sample with all its captions; no split is published with the pictures."""
    folder = flickr_folder(source)
    assert folder is not None
    captions: dict[str, list[str]] = {}
    for name, caption in _flickr_captions(source):
        captions.setdefault(name, []).append(caption)
    pictures = [(folder / name, name, texts, None) for name, texts in captions.items()]
    return _found(pictures, settings, [f"{source}: captions of {len(pictures)} pictures"])


def _flickr_captions(source: Path) -> Iterator[tuple[str, str]]:
    """(picture, caption): `name.jpg#0<tab>caption` in the token file; `image,caption` under a header else."""
    path = source / "results_20130124.token"
    path = path if path.is_file() else source / "captions.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}") from None
    if path.suffix == ".token":
        rows = [(name.partition("#")[0], caption) for name, _, caption in (line.partition("\t") for line in lines)]
    else:
        rows = [(row[0], row[1]) for row in list(csv.reader(lines))[1:] if len(row) == 2]
    yield from ((name.strip(), caption.strip()) for name, caption in rows if name)


_Picture = tuple[Path, str, Sequence[str], Split | None]


def _found(pictures: Sequence[_Picture], settings: Settings, notes: list[str], validation: bool = False) -> Found:
    drafts = (_draft(row, *picture, settings) for row, picture in enumerate(pictures, 1))
    return Found(drafts=drafts, total=len(pictures), notes=notes, group="picture", validation=validation)


def _draft(row: int, path: Path, name: str, captions: Sequence[str], split: Split | None, settings: Settings) -> Draft:
    def pieces() -> Iterator[Piece]:
        yield file_piece(path, settings.part("image"), name=name)
        yield from (text_piece(caption, settings.lang) for caption in captions)

    key = str(Path(name).with_suffix(""))
    return Draft(row=row, key=key, pieces=pieces, split=split, source=settings.source, licence=settings.licence)
