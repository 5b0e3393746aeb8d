"""A run folder of a tiny model with random weights, and media to give to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from mmfusion import checkpoint, config

TOKENIZER = Path(__file__).parent.parent / "data_prep" / "sample" / "tokenizer" / "tokenizer.model"


def node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"mmfusion.{name}", **arguments}


def tree() -> dict[str, Any]:
    """What a run's configuration says of model and pipeline, in small."""
    small = {"width": 16, "depth": 1, "heads": 2}
    heads = {"image": [1, 2, 2, 1], "audio": [3, 1, 1, 1], "sensor": [1, 1, 1, 1], "text": [1, 1, 2, 1]}
    return {
        "model": node(
            "models.multimodal.MultimodalModel",
            encoders={
                "image": node("models.encoders.image.ImageEncoder", **small, patch_px=8, merge=4, grid=6),
                "audio": node("models.encoders.audio.AudioEncoder", **small, frames=8, bands=64, merge=2),
                "sensor": node("models.encoders.sensor.SensorEncoder", **small, points=16, buckets=16),
                "text": node("models.encoders.text.TextEncoder", **small, vocab=8192),
            },
            heads={m: node("models.heads.PlacedHead", width=16, out=12, anchors=a) for m, a in heads.items()},
            fusion=node(
                "models.fusion.prefix.Prefix", widths=dict.fromkeys(("image", "audio", "sensor"), 16), width=24
            ),
            decoder=node(
                "models.decoder.Decoder",
                **{**small, "width": 24},
                vocab=8192,
                kv_heads=1,
                rule=node("models.attention.rules.CausalWindow", window=64, sink=4),
            ),
        ),
        "pipeline": node(
            "data.pipeline.Pipeline",
            tokenizer=node("data.tokenizer.SentencePieceTokenizer", path=str(TOKENIZER)),
            patchify={
                "image": node("data.patchify.PatchifyImage"),
                "audio": node("data.patchify.PatchifyAudio", merge=2),
                "sensor": node("data.patchify.PatchifySensor"),
            },
            row_length=128,
        ),
    }


def save(run: Path) -> Path:
    """Its checkpoint, with weights of seed 0."""
    torch.manual_seed(0)
    network = config.build(tree()["model"])
    checkpoint.save(
        run / "checkpoint", config=tree(), model=network, tokenizer=TOKENIZER, lineage={"step": 3}, card="# x\n"
    )
    return run


def picture(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 4)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def wav(wave: np.ndarray, rate_hz: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, format="WAV", subtype="FLOAT")
    return file.getvalue()


def media(folder: Path) -> Path:
    """a.png, a.wav, and one series of two channels in g as a.npy and a.csv."""
    (folder / "a.png").write_bytes(png(picture()))
    (folder / "a.wav").write_bytes(wav(np.sin(np.arange(8000) / 9).astype(np.float32)))
    values = np.random.default_rng(2).normal(size=(100, 2)).round(3).astype(np.float32)
    np.save(folder / "a.npy", values)
    rows = [f"{x:.3f},{y:.3f}" for x, y in values.tolist()]
    (folder / "a.csv").write_text("\n".join(["acc_x (g),acc_y (g)", *rows]))
    return folder
