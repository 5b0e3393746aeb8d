"""A checkpoint folder written whole or not at all, and what it came from."""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from mmfusion import __version__, runs
from mmfusion.checkpoint.adapter import save_adapter
from mmfusion.checkpoint.layout import (
    ADAPTER,
    CARD,
    CONFIG,
    FORMAT,
    HASHED,
    LINEAGE,
    TEMPLATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    aside,
    sha256,
    weights_sha256,
)
from mmfusion.checkpoint.weights import once
from mmfusion.converters import lora, packing
from mmfusion.data.batching import CHAT_TEMPLATE
from mmfusion.data.shards import MANIFEST


def save(
    folder: Path, *, config: Mapping[str, Any], model: nn.Module, tokenizer: Path, lineage: Mapping[str, Any], card: str
) -> None:
    """Write a checkpoint folder through a temporary one beside it: `folder` holds the old one or the new one, whole.

    `config` has the resolved nodes `model` and `pipeline`; the tokenizer of the latter is the one beside it. A tensor
    that two names share is written under the first. Adapters stand apart from the weights that they were trained with.
    A model that `Quantize` converted has its node too, as `quantization`.
    """
    import psutil

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.draft"):  # by a save that was killed
        pid = left.name.split(".")[-2]
        if left == draft or (pid.isdecimal() and not psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)
    draft.mkdir()
    try:
        pipeline = {name: value for name, value in config["pipeline"].items() if name != "tokenizer"}
        tree = {"format": FORMAT, **config, "pipeline": pipeline}
        (draft / CONFIG).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        state = packing.in_file(lora.base_state(model, once(model)))
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, draft / WEIGHTS)
        except SafetensorError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error}); make room, or choose another") from error
        shutil.copyfile(tokenizer, draft / TOKENIZER)
        shutil.copyfile(CHAT_TEMPLATE, draft / TEMPLATE)
        hashed = list(HASHED)
        if lora.names(model):
            save_adapter(draft / ADAPTER, model, sha256(draft / WEIGHTS))
            hashed += sorted(f"{ADAPTER}/{path.name}" for path in (draft / ADAPTER).iterdir())
        hashes = {name: sha256(draft / name) for name in hashed}
        _write_json(draft / LINEAGE, {**lineage, "files": hashes})
        (draft / CARD).write_text(card, encoding="utf-8")
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_card(folder: Path, card: str) -> None:
    """Replace the model card of a checkpoint, whole or not at all."""
    runs.write(folder / CARD, card)


def lineage(
    *,
    stage: str,
    step: int,
    seed: int,
    data: Path,
    commit: str | None,
    parents: Sequence[Path] = (),
) -> dict[str, Any]:
    """What a checkpoint came from: `data` is the folder of the shards' manifest, `parents` are checkpoint folders."""
    return {
        "stage": stage,
        "step": step,
        "seed": seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit,
        "data": data_of(data),
        "parents": [{"name": str(parent), "sha256": weights_sha256(parent)} for parent in parents],
        "versions": {"mmfusion": __version__, "torch": importlib.metadata.version("torch")},
    }


def data_of(root: Path) -> dict[str, Any]:
    """The fingerprint of all shards in the manifest of a folder, and how many there are."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    shards = sorted((shard["file"], shard["sha256"]) for shard in manifest["shards"])
    if made_from := manifest.get("made_from"):
        shards.append(("made from", made_from))
    return {"fingerprint": hashlib.sha256(json.dumps(shards).encode()).hexdigest(), "shards": len(manifest["shards"])}


def _swap(draft: Path, folder: Path) -> None:
    """Put `draft` in the place of `folder`; killed in between, the old one stands `aside`, where `load` looks."""
    for path in (*draft.rglob("*"), draft):
        _sync(path)
    old = aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    draft.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
