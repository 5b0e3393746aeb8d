"""What a checkpoint may build: an exact list, and what the user names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmfusion.checkpoint.layout import CheckpointError
from mmfusion.config import targets

Allowed = str | Callable[..., Any]  # an own class, by its dotted name or itself

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


def check_buildable(config: Mapping[str, Any], path: Path, names: Collection[str]) -> None:
    """Raises CheckpointError for a configuration, read from `path`, that names what is not among `names`, or holds
    what is not a plain value."""
    for key, target in targets(config):
        if not isinstance(target, str) or target not in names:
            raise CheckpointError(
                f"{path}: {key}: {target!r} is no class that a checkpoint may build; if it is yours and you trust it, "
                f"name it: load(…, allow=[{target!r}]) or --allow {target}"
            )
    for key, value in entries(config):
        name = key.rpartition(".")[2]
        if name.startswith("_") and name not in ("_target_", "_partial_"):
            raise CheckpointError(f"{path}: {key}: not allowed in a checkpoint; remove the line")
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"{path}: {key}: {value!r} is not resolved; a checkpoint holds plain values only")


def entries(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, (Mapping, list)):
        for name, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            below = f"{key}.{name}" if key else str(name)
            yield below, value
            yield from entries(value, below)
