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
    """Copy the stored tensors into the model, which must have exactly these, in these shapes."""
    ours = once(model)
    written = packing.in_file(ours)
    for name in sorted(written.keys() - stored.keys()):
        raise CheckpointError(f"{path}: tensor {name}: missing; config.yaml and weights are not of one checkpoint")
    for name, (_, shape) in stored.items():
        if name not in written:
            raise CheckpointError(f"{path}: tensor {name}: the model has none of that name")
        if shape != tuple(written[name].shape):
            raise CheckpointError(f"{path}: tensor {name}: shape {shape}, the model's is {tuple(written[name].shape)}")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises a class of its own for each fault
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again") from error
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.dtype != written[name].dtype:
                raise CheckpointError(f"{path}: tensor {name}: {tensor.dtype}, the model's is {written[name].dtype}")
            if name.endswith(packing.SCALE) and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{path}: tensor {name}: holds what is no number; copy the folder again")
            ours[name].copy_(packing.from_file(name, tensor, ours[name]))
