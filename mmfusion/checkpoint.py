"""The checkpoint folder: what is in it, written whole or not at all, and opened without running anything from it.

    config.yaml         format version, `model` and `pipeline`: what to build
    model.safetensors   the weights, each tensor once
    tokenizer.model     the vocabulary
    lineage.json        parents, data fingerprint, commit, step, versions, and the sha256 of the three files above
    README.md           the model card

Nothing here is a pickle, nothing is fetched, and only classes on an exact list are built (see `BUILDABLE`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmfusion import __version__, runs
from mmfusion.config import ConfigError, build, leaves, targets
from mmfusion.data.shards import MANIFEST
from mmfusion.errors import UserError
from mmfusion.runs import plain

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, LINEAGE, CARD = (
    "config.yaml", "model.safetensors", "tokenizer.model", "lineage.json", "README.md",
)  # fmt: skip
HASHED = (CONFIG, WEIGHTS, TOKENIZER)
Allowed = str | Callable[..., Any]  # an own class, by its dotted name or itself
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000

# What a checkpoint may build. Each name is a class or function of ours that reads no file and runs nothing it is given.
BUILDABLE = frozenset(
    f"mmfusion.{name}"
    for name in (
        "data.pipeline.Pipeline",
        "data.patchify.PatchifyImage",
        "data.patchify.PatchifyAudio",
        "data.patchify.PatchifySensor",
        "models.multimodal.MultimodalModel",
        "models.decoder.Decoder",
        "models.heads.PlacedHead",
        "models.fusion.prefix.Prefix",
        "models.encoders.image.ImageEncoder",
        "models.encoders.audio.AudioEncoder",
        "models.encoders.sensor.SensorEncoder",
        "models.encoders.text.TextEncoder",
        "models.attention.rules.Both",
        "models.attention.rules.Either",
        "models.attention.rules.Causal",
        "models.attention.rules.Document",
        "models.attention.rules.Window",
        "models.attention.rules.Sink",
        "models.attention.rules.CausalWindow",
    )
)


class CheckpointError(UserError):
    """A checkpoint that cannot be used; one line with the file, the key or tensor, and the remedy."""


# ------------------------------------------------------------------------------------------------------------ writing


def save(
    folder: Path, *, config: Mapping[str, Any], model: nn.Module, tokenizer: Path, lineage: Mapping[str, Any], card: str
) -> None:
    """Write a checkpoint folder through a temporary one beside it: `folder` holds the old one or the new one, whole.

    `config` has the resolved nodes `model` and `pipeline`; the tokenizer of the latter is the one beside it. A tensor
    that two names share is written under the first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        pipeline = {name: value for name, value in config["pipeline"].items() if name != "tokenizer"}
        tree = {"format": FORMAT, **config, "pipeline": pipeline}
        (draft / CONFIG).write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        save_file({n: t.detach().cpu().contiguous() for n, t in _once(model).items()}, draft / WEIGHTS)
        shutil.copyfile(tokenizer, draft / TOKENIZER)
        hashes = {name: _sha256(draft / name) for name in HASHED}
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
    step: int,
    seed: int,
    data: Path,
    commit: str | None,
    parents: Sequence[Path] = (),
) -> dict[str, Any]:
    """What a checkpoint came from: `data` is the folder of the shards' manifest, `parents` are checkpoint folders."""
    return {
        "step": step,
        "seed": seed,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit,
        "data": data_of(data),
        "parents": [{"name": str(parent), "sha256": _sha256(parent / WEIGHTS)} for parent in parents],
        "versions": {"mmfusion": __version__, "torch": importlib.metadata.version("torch")},
    }


def data_of(root: Path) -> dict[str, Any]:
    """The fingerprint of all shards in the manifest of a folder, and how many there are."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    shards = sorted((shard["file"], shard["sha256"]) for shard in manifest["shards"])
    return {"fingerprint": hashlib.sha256(json.dumps(shards).encode()).hexdigest(), "shards": len(shards)}


def _swap(draft: Path, folder: Path) -> None:
    """Put `draft` in the place of `folder`; killed in between, the old one stands `_aside`, where `load` looks."""
    for path in (*draft.iterdir(), draft):
        _sync(path)
    aside = _aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    draft.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path) -> Path:
    whole = folder.resolve()  # "." has no name
    return whole.parent / f".{whole.name}.previous"


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _once(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, a tensor that stands under several names (tied embeddings) only under the first."""
    known: set[tuple[object, ...]] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if not tensor.numel() or place not in known:
            state[name] = tensor
        known.add(place)
    return state


# ------------------------------------------------------------------------------------------------------------ reading


def buildable(allow: Collection[Allowed] = ()) -> frozenset[str]:
    """The names that a checkpoint may build: BUILDABLE and the user's own classes.

    A class may be given by its dotted name (`my_package.MyEncoder`) or as it is; then it has the name of the module
    that defines it, and those of the packages above that hand it on. Raises CheckpointError for a class that nothing
    can be imported by.
    """
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise CheckpointError(f"allow: must be a list of own classes or their dotted names, not {allow!r:.60}")
    return BUILDABLE.union(*(_names_of(item) for item in allow))


def _names_of(item: Allowed) -> Iterator[str]:
    if isinstance(item, str):
        yield item
        return
    module, name = getattr(item, "__module__", None), getattr(item, "__qualname__", "")
    if not module or not name:
        raise CheckpointError(f"allow: {item!r:.60} is no class; give the class itself or its dotted name")
    if module == "__main__" or "<locals>" in name:
        where = "a script or notebook" if module == "__main__" else "a function"
        remedy = f"move it to a module, my_package.py, import it from there, and train with my_package.{item.__name__}"
        raise CheckpointError(f"allow: {name} is defined in {where}, where nothing else can import it from; {remedy}")
    yield f"{module}.{name}"
    parts = module.split(".")
    for package in (".".join(parts[:cut]) for cut in range(1, len(parts))):
        if getattr(sys.modules.get(package), name, None) is item:
            yield f"{package}.{name}"


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
    stored = _read_header(folder / WEIGHTS)
    for key, value in _leaves(config["model"], "model"):  # before so many layers are made
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
    _fill(model, stored, folder / WEIGHTS)
    return model.eval(), config


def fill(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model built like it. Raises CheckpointError for a tensor that does not fit."""
    folder = locate(folder)
    _check_hashes(folder)
    _fill(model, _read_header(folder / WEIGHTS), folder / WEIGHTS)


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
    if tokenizer.is_file() and _sha256(folder / TOKENIZER) != _sha256(tokenizer):
        remedy = f"data.tokenizer={folder / TOKENIZER}"
        raise CheckpointError(f"checkpoint={folder}: has another vocabulary than {tokenizer}; set {remedy}")


def locate(path: Path) -> Path:
    """The checkpoint folder that a run folder or checkpoint folder means. Raises CheckpointError for anything else."""
    if "\0" in str(path):
        raise CheckpointError(f"{str(path)!r}: no file name")
    if path.is_file():
        raise CheckpointError(f"{path}: {_kind(path)}; give a checkpoint folder (config.yaml, model.safetensors, …)")
    for folder in (path / "checkpoint", path):
        for standing in (folder, _aside(folder)):
            if (standing / CONFIG).is_file() and (standing / WEIGHTS).is_file():
                missing = [name for name in (TOKENIZER, LINEAGE) if not (standing / name).is_file()]
                if missing:
                    raise CheckpointError(f"{standing / missing[0]}: missing; copy the whole folder again")
                return standing
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder")
    pickles = sorted(p for p in (*path.glob("*"), *path.glob("*/*")) if p.suffix.lower() in PICKLES and p.is_file())
    if pickles:
        raise CheckpointError(f"{pickles[0]}: {_kind(pickles[0])}; and {path} holds no {CONFIG} with {WEIGHTS}")
    raise CheckpointError(f"{path}: no checkpoint ({CONFIG} and {WEIGHTS} are missing)")


def _kind(path: Path) -> str:
    """What a file that is no checkpoint folder looks like, told by its first bytes."""
    with path.open("rb") as file:
        head = file.read(4)
    if head[:1] == b"\x80" or head == b"PK\x03\x04" or path.suffix.lower() in PICKLES:
        return "a pickle, which could run code when it is opened; it was not opened"
    return "a single file"


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


def check_buildable(config: Mapping[str, Any], path: Path, names: Collection[str]) -> None:
    """Raises CheckpointError for a configuration, read from `path`, that names what is not among `names`, or holds
    what is not a plain value."""
    for key, target in targets(config):
        if not isinstance(target, str) or target not in names:
            raise CheckpointError(
                f"{path}: {key}: {target!r} is no class that a checkpoint may build; if it is yours and you trust it, "
                f"name it: load(…, allow=[{target!r}]) or --allow {target}"
            )
    for key, value in _leaves(config):
        name = key.rpartition(".")[2]
        if name.startswith("_") and name not in ("_target_", "_partial_"):
            raise CheckpointError(f"{path}: {key}: not allowed in a checkpoint; remove the line")
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"{path}: {key}: {value!r} is not resolved; a checkpoint holds plain values only")


def _leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, (Mapping, list)):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            below = f"{key}.{name}" if key else str(name)
            yield below, value
            yield from _leaves(value, below)


def _check_hashes(folder: Path) -> None:
    path = folder / LINEAGE
    try:
        files = json.loads(path.read_bytes())["files"]
        expected = {name: files[name] for name in HASHED}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: files: missing or unreadable; copy the whole folder again") from error
    for name, digest in expected.items():
        if name != WEIGHTS and _sha256(folder / name) != digest:
            raise CheckpointError(f"{folder / name}: changed since it was saved (sha256 differs from {LINEAGE})")
    if _sha256(folder / WEIGHTS) != expected[WEIGHTS]:
        _read_header(folder / WEIGHTS)  # says which tensor, where it can
        raise CheckpointError(f"{folder / WEIGHTS}: damaged (sha256 differs from {LINEAGE}); copy the folder again")


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a safetensors file. Raises CheckpointError where header and file disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if _kind(path) != "a single file":
            raise CheckpointError(f"{path}: {_kind(path)}; only safetensors are read")
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


def _fill(model: nn.Module, stored: Mapping[str, tuple[str, tuple[int, ...]]], path: Path) -> None:
    """Copy the stored tensors into the model, which must have exactly these, in these shapes."""
    ours = _once(model)
    for name in sorted(ours.keys() - stored.keys()):
        raise CheckpointError(f"{path}: tensor {name}: missing; config.yaml and weights are not of one checkpoint")
    for name, (_, shape) in stored.items():
        if name not in ours:
            raise CheckpointError(f"{path}: tensor {name}: the model has none of that name")
        if shape != tuple(ours[name].shape):
            raise CheckpointError(f"{path}: tensor {name}: shape {shape}, the model's is {tuple(ours[name].shape)}")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises a class of its own for each fault
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the folder again") from error
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.dtype != ours[name].dtype:
                raise CheckpointError(f"{path}: tensor {name}: {tensor.dtype}, the model's is {ours[name].dtype}")
            ours[name].copy_(tensor)
