"""Small trees in exactly the published layouts, and tables of real small files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tiny_media import npy, png, sound, tone

from mmfusion.data.shards import ShardSet, read_manifest
from mmfusion.types import Sample

COLOURS = ("red", "green", "blue", "grey")


def colour(i: int) -> bytes:
    return png((60 * i % 256, i % 256, i // 256 + 90))


def clip(i: int) -> bytes:
    return sound(tone(200 + 5 * i, 0.1))


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return path


def series_csv(i: int, steps: int = 60) -> str:
    lines = ["time_s,acc_x (m/s^2),gyro_z [rad/s]"]
    lines += [f"{k / 50:.2f},{np.sin(k + i):.3f},{0.1 * k:.2f}" for k in range(steps)]
    return "\n".join(lines) + "\n"


def mixed_table(root: Path, rows: int = 40) -> Path:
    """Pictures, sounds and series of four classes, as a person might lay them down."""
    for i in range(rows):
        put(root / "pics" / f"IMG ({i}).png", colour(i))
        put(root / "sounds" / f"звук {i}.wav", clip(i))
        put(root / "walks" / f"{i}.csv", series_csv(i))
    cells = [[f"pics/IMG ({i}).png", f"sounds/звук {i}.wav", f"walks/{i}.csv", COLOURS[i % 4]] for i in range(rows)]
    return table(root / "mine.csv", ["image", "audio", "sensor", "label"], cells)


def coco(root: Path, train: int = 12, val: int = 4) -> Path:
    for split, n in (("train", train), ("val", val)):
        first = {"train": 0, "val": 500}[split]
        images = [{"id": first + i, "file_name": f"{first + i:012d}.jpg", "height": 16, "width": 16} for i in range(n)]
        said = [
            {"id": 10 * image["id"] + k, "image_id": image["id"], "caption": f"A goose number {image['id']}, {k}."}
            for image in images
            for k in range(5)
        ]
        listed = {"info": {}, "licenses": [], "images": images, "annotations": said}
        put(root / "annotations" / f"captions_{split}2017.json", json.dumps(listed))
        for image in images:
            put(root / f"{split}2017" / image["file_name"], png((image["id"] % 256, 9, 90), form="JPEG"))
    return root


def esc50(root: Path) -> Path:
    rows = []
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (26, "laughing"), (12, "crackling_fire")):
            for take in "AB":
                name = f"{fold}-{100 * fold + target}-{take}-{target}.wav"
                put(root / "audio" / name, clip(7 * len(rows)))
                esc10 = str(target == 0)
                rows.append([name, fold, target, category, esc10, 100 * fold + target, take])
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    table(root / "meta" / "esc50.csv", columns, rows)
    return root


def speech_commands(root: Path) -> Path:
    speakers = ("0a7c2a8d", "1b4c9b89", "2c6d3924", "bb05582b")
    for w, word in enumerate(("yes", "no", "up")):
        for s, speaker in enumerate(speakers):
            put(root / word / f"{speaker}_nohash_0.wav", clip(16 * w + s))
    put(root / "_background_noise_" / "doing_the_dishes.wav", clip(99))
    put(root / "validation_list.txt", "".join(f"{w}/{speakers[2]}_nohash_0.wav\n" for w in ("yes", "no", "up")))
    put(root / "testing_list.txt", "".join(f"{w}/{speakers[3]}_nohash_0.wav\n" for w in ("yes", "no", "up")))
    return root


HAR_ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "SITTING")


def uci_har(root: Path, train: int = 18, test: int = 6) -> Path:
    """Train of subjects 1, 3, 5; test of 2, 4. Every value of a signal is its number and the window's."""
    put(root / "activity_labels.txt", "".join(f"{i} {name}\n" for i, name in enumerate(HAR_ACTIVITIES, 1)))
    for split, n, subjects, first in (("train", train, (1, 3, 5), 0), ("test", test, (2, 4), 500)):
        put(root / split / f"subject_{split}.txt", "".join(f"{subjects[i % len(subjects)]}\n" for i in range(n)))
        put(root / split / f"y_{split}.txt", "".join(f"{i // 2 % 3 + 1}\n" for i in range(n)))
        for s, signal in enumerate(("body_acc", "body_gyro", "total_acc")):
            for a, axis in enumerate("xyz"):
                rows = [" ".join([f" {3 * s + a + (first + i) / 1000:.7e}"] * 128) for i in range(n)]
                put(root / split / "Inertial Signals" / f"{signal}_{axis}_{split}.txt", "\n".join(rows) + "\n")
    return root


def flickr30k(root: Path, pictures: int = 6) -> Path:
    lines = [f"{1000 + i}.jpg#{k}\tA goose , number {i} , said {k} .\n" for i in range(pictures) for k in range(5)]
    put(root / "results_20130124.token", "".join(lines))
    for i in range(pictures):
        put(root / "flickr30k_images" / f"{1000 + i}.jpg", png((i, 30, 60), form="JPEG"))
    return root


def packed(out: Path) -> Mapping[str, list[Sample]]:
    """The samples of each split, as training reads them."""
    splits = sorted({entry.split for entry in read_manifest(out)})
    return {split: list(ShardSet(out, split)) for split in splits}


def everything(out: Path) -> dict[str, Sample]:
    return {sample.key: sample for samples in packed(out).values() for sample in samples}


def wave_npy(steps: int, channels: int) -> bytes:
    return npy(np.arange(steps * channels, dtype=np.float64).reshape(steps, channels))
