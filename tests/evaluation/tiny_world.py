"""A world small enough to work out by hand: a few shards on disk, and a model whose every answer is known.

A picture is a flat colour, a clip a constant level, a series a constant channel; each stands for a number, and the
oracle maps numbers and names to concepts, concepts to one-hot vectors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import Modality, Part, Sample

CONCEPTS = ("red", "green", "blue", "grey", "pink", "frog", "cow", "drum", "flute", "walk", "run")
CODES = {10: "red", 11: "red", 12: "red", 13: "pink", 200: "green", 201: "green", 100: "blue", 101: "blue",
         150: "grey", 50: "frog", 52: "frog", 53: "frog", 61: "frog", 60: "cow", 62: "cow", 64: "cow",
         70: "drum", 120: "flute", 80: "walk", 90: "run"}  # fmt: skip
NAMES = {"vert": "green", "gris": "grey", "rose": "pink", "a drum": "drum", "a flute": "flute", "rosy": "cow",
         "grenouille": "frog", "vache": "cow"}  # fmt: skip


def png(code: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (code, 255 - code, 7)).save(file, "PNG")
    return file.getvalue()


def flac(code: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(1600, code / 256, np.float32), 16000, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def npy(code: int, seconds: float = 10.0) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((int(50 * seconds), 1), code, np.float32))
    return file.getvalue()


def text(name: str, lang: str = "en") -> Part:
    return Part(type="text", text=name, lang=lang)


def picture(key: str, code: int, name: str, concept: str, source: str, *more: Part, category: str = "c") -> Sample:
    image = Part(type="image", file="png", data=png(code))
    labels = {"concept": concept, "category": category}
    return Sample(key=key, parts=(image, text(name), *more), labels=labels, source=source)


def spoken(code: int, lang: str) -> Part:
    return Part(type="audio", file=f"{lang}.flac", kind="speech", lang=lang, text=f"name {lang}", data=flac(code))


def sound(key: str, code: int, kind: str) -> Sample:
    parts = (Part(type="audio", file="flac", kind="sound", data=flac(code)), text(f"a {kind}"))
    return Sample(key=key, parts=parts, labels={"kind": kind, "concept": kind}, source="sounds")


def series(key: str, code: int, activity: str, subject: str) -> Sample:
    part = Part(type="sensor", file="npy", rate_hz=50, channels=("x",), units=("g",), subject=subject, data=npy(code))
    labels = {"activity": activity, "subject": subject, "concept": activity}
    return Sample(key=key, parts=(part, text(activity)), labels=labels, source="watch")


def samples() -> dict[str, list[Sample]]:
    """Vendor `a` trains, vendor `b` tests; blue validates; grey and pink are unseen; red and rosy look the same."""
    cow = picture("cow", 60, "cow", "cow", "things", spoken(62, "en"), category="animal")
    own = Part(type="audio", file="own.flac", kind="sound", data=flac(61))
    return {
        "train": [
            picture("a-red", 10, "red", "red", "a"),
            picture("a-rosy", 12, "rosy", "rosy", "a", category="d"),
            picture("a-green", 200, "green", "green", "a", category="d"),
            picture("frog", 50, "frog", "frog", "things", spoken(52, "en"), own, category="animal"),
            cow,
            *(sound(f"t{i}", 70 + 50 * (i % 2), ("drum", "flute")[i % 2]) for i in range(6)),
            *(series(f"t-{i}", 80 + 10 * (i % 2), ("walk", "run")[i % 2], f"s{i % 3}") for i in range(6)),
        ],
        "validation": [picture("a-blue", 100, "blue", "blue", "a")],
        "test": [
            picture("b-red", 11, "red", "red", "b"),
            picture("b-rosy", 11, "rosy", "rosy", "b", category="d"),
            picture("b-green", 201, "green", "green", "b", text("vert", "fr"), category="d"),
            picture("b-blue", 101, "blue", "blue", "b"),
            picture("b-grey", 150, "grey", "grey", "b", text("gris", "fr"), category="d"),
            picture("b-pink", 13, "pink", "pink", "b", text("rose", "fr")),
            Sample(
                key="frog-fr",
                parts=(Part(type="image", file="png", data=png(50)), spoken(53, "fr"), text("grenouille", "fr")),
                labels={"concept": "frog"},
                source="things",
            ),
            Sample(
                key="cow-fr",
                parts=(Part(type="image", file="png", data=png(60)), spoken(64, "fr"), text("vache", "fr")),
                labels={"concept": "cow"},
                source="things",
            ),
            *(sound(f"e{i}", 70 + 50 * (i % 2), ("drum", "flute")[i % 2]) for i in range(3)),
            *(series(f"e-{i}", 80 + 10 * (i % 2), ("walk", "run")[i % 2], f"s{5 + i % 2}") for i in range(4)),
        ],
    }


def write_world(root: Path, changed: Mapping[str, list[Sample]] | None = None) -> Path:
    """One shard for each source and split, and the manifest."""
    entries = []
    for split, of_split in {**samples(), **(changed or {})}.items():
        for source in dict.fromkeys(sample.source for sample in of_split):
            path = root / f"{source}-{split}.tar"
            entries.append(write_shard(path, [s for s in of_split if s.source == source], split=split))
    write_manifest(root, entries)
    return root


class Oracle:
    """Knows the concept of every number and name, but for what `mistakes` says; counts what it was asked."""

    modalities: tuple[Modality, ...] = ("image", "audio", "sensor", "text")

    def __init__(self, mistakes: Mapping[int, str] | None = None, says: Sequence[str] = ("red",)) -> None:
        self.mistakes, self.says = dict(mistakes or {}), list(says)
        self.asked = 0

    def concept(self, part: Part) -> str:
        if part.type == "text":
            return NAMES.get(part.text or "", part.text or "")
        assert isinstance(part.data, np.ndarray)
        value = float(part.data.flat[0])
        code = round(value * 256) if part.type == "audio" else round(value)
        return self.mistakes.get(code, CODES[code])

    def embed_parts(self, parts: Sequence[Part]) -> np.ndarray:
        self.asked += len(parts)
        return np.eye(len(CONCEPTS), dtype=np.float32)[[CONCEPTS.index(self.concept(part)) for part in parts]]

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        return [self.says[i % len(self.says)] for i in range(len(prompts))]

    def unusable(self, sample: object, *, answered: bool) -> str | None:
        return None

    def score_answers(self, samples: Sequence[Sample]) -> list[tuple[np.ndarray, ...]]:
        raise NotImplementedError("nobody asks the oracle what it prefers")

    rewards = False

    def reward_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        raise NotImplementedError("the oracle gives no rewards")
