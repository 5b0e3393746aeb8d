"""Small real files made in memory, samples of them, and a tokenizer."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import soundfile
from PIL import Image

from mmfusion.data.patchify import Patchify, PatchifyAudio, PatchifyImage, PatchifySensor
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.shards import ShardEntry
from mmfusion.data.tokenizer import RESERVED, SentencePieceTokenizer
from mmfusion.data.writer import describe_shard, write_manifest, write_shard
from mmfusion.types import Modality, Part, Sample

RATE = 16_000
WORDS = ("goose", "eine Gans", "une oie", "гусь", "ガチョウ", "rowing the boat", "a guitar", "drum")


def png(colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (16, 16), **how: Any) -> bytes:
    """A picture of one colour with a diagonal, RGB or RGBA by the length of `colour`."""
    pixels = np.empty((size[1], size[0], len(colour)), np.uint8)
    pixels[:] = colour
    n = min(size)
    pixels[np.arange(n), np.arange(n), :3] = 0
    return encoded(Image.fromarray(pixels), **how)


def encoded(picture: Image.Image, form: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **how)
    return file.getvalue()


def tone(hz: float = 440.0, seconds: float = 0.3, rate: int = RATE) -> np.ndarray:
    """float32 [T], a sine of half the range."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound(wave: np.ndarray, form: str = "WAV", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def wrist(steps: int = 200, seed: int = 0, **how: Any) -> Part:
    """Three channels of acceleration at 50 Hz."""
    series = np.random.default_rng(seed).standard_normal((steps, 3)).astype(np.float32)
    fields: dict[str, Any] = {
        "file": "npy",
        "rate_hz": 50.0,
        "place": "right wrist",
        "channels": ("acc_x", "acc_y", "acc_z"),
        "units": ("g", "g", "g"),
        "data": npy(series),
    }
    return Part(type="sensor", **{**fields, **how})


def picture_sample(i: int, source: str = "pictures") -> Sample:
    parts = (
        Part(type="image", file="png", data=png((40 * i % 256, 80, 160))),
        Part(type="text", lang="en", text=f"goose {i}"),
        Part(type="text", lang="fr", text=f"une oie {i}"),
    )
    return Sample(key=f"p{i:04d}", parts=parts, labels={"concept": f"goose-{i}"}, source=source, licence="CC0-1.0")


def spoken_sample(i: int, source: str = "spoken") -> Sample:
    parts = (
        Part(type="image", file="png", data=png((10, 40 * i % 256, 160))),
        Part(type="audio", file="de.wav", kind="speech", lang="de", text="eine Gans", data=sound(tone(300 + 20 * i))),
        Part(type="audio", file="call.wav", kind="sound", data=sound(tone(900 + 20 * i, 0.2))),
        Part(type="text", lang="en", text=f"a guitar {i}"),
    )
    return Sample(key=f"s{i:04d}", parts=parts, labels={"concept": f"goose-{i}"}, source=source, licence="CC0-1.0")


def watch_sample(i: int, source: str = "watch") -> Sample:
    parts = (wrist(seed=i), Part(type="text", lang="en", text="rowing the boat"))
    return Sample(key=f"w{i:04d}", parts=parts, labels={"activity": "rowing"}, source=source, licence="CC0-1.0")


def write_set(root: Path, shards: Mapping[str, tuple[str, Sequence[Sample]]]) -> list[ShardEntry]:
    """Shards by file name, each (split, samples), and the manifest."""
    entries = [write_shard(root / name, samples, split=split) for name, (split, samples) in shards.items()]
    write_manifest(root, entries)
    return entries


def write_mixed(root: Path, pictures: int = 20, spoken: int = 8, watch: int = 6) -> Path:
    """Three sources for training, one for validation."""
    write_set(
        root,
        {
            "pictures.tar": ("train", [picture_sample(i) for i in range(pictures)]),
            "spoken.tar": ("train", [spoken_sample(i) for i in range(spoken)]),
            "watch.tar": ("train", [watch_sample(i) for i in range(watch)]),
            "validation.tar": ("validation", [picture_sample(1000 + i) for i in range(5)]),
        },
    )
    return root


def tar(path: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    """A tar of any members in any order, as others might write it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            file.addfile(info, io.BytesIO(member[1]))
    return path


def list_shard(path: Path, split: str = "train") -> Path:
    """The manifest of one foreign tar beside it; returns the folder."""
    write_manifest(path.parent, [describe_shard(path, split=split)])
    return path.parent


def train_tokenizer(path: Path) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*WORDS, *"abcdefghijklmnopqrstuvwxyz"] * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=list(RESERVED),
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def small_patchify() -> dict[Modality, Patchify]:
    return {
        "image": PatchifyImage(patch_px=8, merge=4, size_px=16),
        "audio": PatchifyAudio(bands=32, patch_bands=32, frames=8, merge=2),
        "sensor": PatchifySensor(patch_s=0.5, points=8, window_s=2.0),
    }


def small_pipeline(tokenizer: SentencePieceTokenizer, **how: Any) -> Pipeline:
    return Pipeline(tokenizer=tokenizer, patchify=small_patchify(), **{"row_length": 64, "text_pieces": 16, **how})
