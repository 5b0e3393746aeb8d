"""model.safetensors: its header checked before a tensor is read, its tensors put into a model that fits exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmfusion.checkpoint.layout import CheckpointError, kind_of
from mmfusion.converters import packing

MAX_HEADER_BYTES = 100_000_000


def once(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, a tensor that stands under several names (tied embeddings) only under the first; of quantized
    weights what `packing.held` tells."""
    known: set[tuple[object, ...]] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        for key, held in packing.held(name, tensor).items():
            place = (held.data_ptr(), held.shape, held.stride())
            if not held.numel() or place not in known:
                state[key] = held
            known.add(place)
    return state


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a safetensors file. Raises CheckpointError where header and file disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if kind_of(path) != "a single file":
            raise CheckpointError(f"{path}: {kind_of(path)}; only safetensors are read")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path}: header of {length:,} bytes in a file of {size:,}; it is cut or no safetensors"
            )
        try:
            header = json.loads(file.read(length))
            spans = {
                name: (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
                if name != "__metadata__"
            }
            numbers = (number for _, shape, begin, end in spans.values() for number in (*shape, begin, end))
            if not all(type(number) is int for number in numbers):
                raise ValueError("shapes and offsets are whole numbers")
            ordered = sorted(spans.items(), key=lambda item: item[1][2:])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is no safetensors header; copy the folder again") from error
    reached = 0
    for name, (_, _, begin, end) in ordered:
        if begin != reached or end < begin:
            raise CheckpointError(f"{path}: tensor {name}: bytes {begin}-{end} overlap or leave a gap at {reached}")
        if end > size - 8 - length:
            raise CheckpointError(
                f"{path}: tensor {name}: ends at byte {end}, the file holds {size - 8 - length}; it is cut"
            )
        reached = end
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in spans.items()}


def fill_from(model: nn.Module, stored: Mapping[str, tuple[str, tuple[int, ...]]], path: Path) -> None:
    """Copy the stored tensors into the model, which must have exactly these, in these shapes.

    A model in full takes of quantized weights what they round to.
    """
    ours = once(model)
    rounded = packing.quantized(stored) and not packing.quantized(ours)
    if not rounded:
        _check_fit({name: shape for name, (_, shape) in stored.items()}, packing.in_file(ours), path)
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises a class of its own for each fault
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again") from error
    if rounded:
        weights = _in_full(weights, ours, path)
    with torch.no_grad():
        for name, tensor in weights.items():
            here = ours[name]
            tensor = packing.from_file(name, tensor, here)
            if tensor.dtype != here.dtype:
                raise CheckpointError(f"{path}: tensor {name}: {tensor.dtype}, the model's is {here.dtype}")
            here.copy_(tensor)


def _check_fit(stored: Mapping[str, tuple[int, ...]], ours: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(ours.keys() - stored.keys()):
        raise CheckpointError(f"{path}: tensor {name}: missing; config.yaml and weights are not of one checkpoint")
    for name, shape in stored.items():
        if name not in ours:
            raise CheckpointError(f"{path}: tensor {name}: the model has none of that name")
        if shape != tuple(ours[name].shape):
            raise CheckpointError(f"{path}: tensor {name}: shape {shape}, the model's is {tuple(ours[name].shape)}")


def _in_full(weights: Mapping[str, Tensor], ours: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        full = packing.in_full(weights, {name: tensor.shape for name, tensor in ours.items()})
    except (KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: its quantized weights are not those of the model ({reason})") from error
    _check_fit({name: tuple(tensor.shape) for name, tensor in full.items()}, ours, path)
    return full
