"""A checkpoint folder opened: strictly, and nothing in it is run."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from mmfusion.checkpoint.adapter import load_adapter
from mmfusion.checkpoint.layout import (
    ADAPTER,
    CONFIG,
    FORMAT,
    HASHED,
    LINEAGE,
    QUANTIZATION,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    locate,
    sha256,
)
from mmfusion.checkpoint.trust import Allowed, buildable, check_buildable, entries
from mmfusion.checkpoint.weights import fill_from, read_header
from mmfusion.config import ConfigError, build, check, leaves
from mmfusion.converters import lora, packing
from mmfusion.converters.quantize import Quantize
from mmfusion.errors import UserError
from mmfusion.runs import plain


def load(folder: Path, allow: Collection[Allowed] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode on the CPU, and its configuration.

    `allow` gives the user's own classes that may be built beside mmfusion's, see `buildable`. Raises CheckpointError,
    before a module is imported or a weight is read, for whatever is not exactly as `save` writes it.
    """
    names = buildable(allow)
    folder = locate(folder)
    config = _read_config(folder / CONFIG)
    check_buildable(config, folder / CONFIG, names)
    _check_hashes(folder)
    stored = read_header(folder / WEIGHTS)
    for key, value in entries(config["model"], "model"):  # before so many layers are made
        if key.endswith(".depth") and isinstance(value, int) and value > len(stored):
            raise CheckpointError(f"{folder / CONFIG}: {key}: {value} layers, but {len(stored)} tensors are stored")
    try:
        model = build(config["model"], allow=names)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: model.{error.problems[0]}") from error
    except Exception as error:  # a constructor's own complaint about its arguments
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{folder / CONFIG}: model cannot be built ({reason}); was it edited?") from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{folder / CONFIG}: model is a {type(model).__name__}, no module; was it edited?")
    if node := _rounding_of(config, folder / CONFIG):
        _quantize(model, node, folder / CONFIG)
    fill_from(model, stored, folder / WEIGHTS)
    if (folder / ADAPTER).exists():
        load_adapter(folder / ADAPTER, model, sha256(folder / WEIGHTS))
    return model.eval(), config


def _quantize(model: nn.Module, node: dict[str, Any], path: Path) -> None:
    """Let a model hold integers as the model of the checkpoint did; which ones, its weights say."""
    try:
        check(node, Quantize)
        Quantize(**node).structure(model)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {QUANTIZATION}.{error.problems[0]}; was it edited?") from error
    except UserError as error:
        raise CheckpointError(f"{path}: {QUANTIZATION}: {error}") from error


def fill(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model built like it, those of its adapter added to them.

    Raises CheckpointError for a tensor that does not fit.
    """
    folder = locate(folder)
    _check_hashes(folder)
    if node := quantization(folder):
        rounded = copy.deepcopy(model)
        _quantize(rounded, node, folder / CONFIG)
        fill_from(rounded, read_header(folder / WEIGHTS), folder / WEIGHTS)
        _fill_in_full(model, rounded, folder)
    else:
        fill_from(model, read_header(folder / WEIGHTS), folder / WEIGHTS)
    if (folder / ADAPTER).exists():
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        load_adapter(folder / ADAPTER, model, sha256(folder / WEIGHTS))
        lora.merge(model)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trained)


def _fill_in_full(model: nn.Module, rounded: nn.Module, folder: Path) -> None:
    """Copy what a model of integers stands for."""
    full = {name: held.dequantize() if packing.is_held(held) else held for name, held in rounded.state_dict().items()}
    ours = model.state_dict()
    if more := sorted(full.keys() - ours.keys()):
        remedy = "begin with the checkpoint that it was made of"
        raise CheckpointError(f"checkpoint={folder}: was untied to be quantized ({more[0]}); {remedy}")
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(full[name])


def check_same(folder: Path, model: Mapping[str, Any], tokenizer: Path) -> None:
    """Raises CheckpointError, naming the keys, if a checkpoint's model or vocabulary is not the configured one."""
    folder = locate(folder)
    theirs, ours = (dict(leaves(tree, "model")) for tree in (_read_config(folder / CONFIG)["model"], model))
    differing = [
        f"{key} is {theirs.get(key, 'not set')!r} there and {ours.get(key, 'not set')!r} here"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise CheckpointError(f"checkpoint={folder}: of another model: {'; '.join(differing)}; set the same")
    check_vocabulary(folder, tokenizer)


def quantization(folder: Path) -> dict[str, Any] | None:
    """How a checkpoint's weights were quantized, a node of `Quantize`; None for weights in full."""
    path = locate(folder) / CONFIG
    return _rounding_of(_read_config(path), path)


def _rounding_of(config: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    node = config.get(QUANTIZATION)
    if node is not None and not isinstance(node, dict):
        raise CheckpointError(f"{path}: {QUANTIZATION}: holds no keys; was it edited?")
    return node


def check_vocabulary(folder: Path, tokenizer: Path) -> None:
    """Raises CheckpointError if a checkpoint has another vocabulary than `tokenizer`."""
    folder = locate(folder)
    if tokenizer.is_file() and sha256(folder / TOKENIZER) != sha256(tokenizer):
        remedy = f"data.tokenizer={folder / TOKENIZER}"
        raise CheckpointError(f"checkpoint={folder}: has another vocabulary than {tokenizer}; set {remedy}")


def plain_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values, empty where it holds something else than keys. Raises CheckpointError."""
    try:
        read = plain.plain_yaml(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return read if isinstance(read, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    config = plain_yaml(path)
    version = config.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: format: missing or no number; this is no checkpoint's configuration")
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than this mmfusion reads ({FORMAT}); upgrade mmfusion"
        )
    for key in ("model", "pipeline"):
        if not isinstance(config.get(key), dict):
            raise CheckpointError(f"{path}: {key}: missing; copy the whole folder again")
    return config


def _check_hashes(folder: Path) -> None:
    path = folder / LINEAGE
    try:
        files = json.loads(path.read_bytes())["files"]
        adapter = [name for name in files if PurePosixPath(name).parent == PurePosixPath(ADAPTER)]
        expected = {name: files[name] for name in (*HASHED, *adapter)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: files: missing or unreadable; copy the whole folder again") from error
    stray = sorted({f"{ADAPTER}/{file.name}" for file in (folder / ADAPTER).glob("*")} - expected.keys())
    if stray:
        raise CheckpointError(f"{folder / stray[0]}: is not listed in {LINEAGE}; an adapter of your own goes elsewhere")
    for name, digest in expected.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; copy the whole folder again")
        if name != WEIGHTS and sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: changed since it was saved (sha256 differs from {LINEAGE})")
    if sha256(folder / WEIGHTS) != expected[WEIGHTS]:
        read_header(folder / WEIGHTS)  # says which tensor, where it can
        raise CheckpointError(f"{folder / WEIGHTS}: damaged (sha256 differs from {LINEAGE}); copy the folder again")
