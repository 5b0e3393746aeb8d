"""A trained checkpoint rounded to integers: without training, its scales from its weights alone or from data too."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion import api, checkpoint, report
from mmfusion.checkpoint.layout import QUANTIZATION, CheckpointError, bytes_of, weights_sha256
from mmfusion.converters import lora
from mmfusion.converters.calibration import calibrate
from mmfusion.converters.quantize import Quantize
from mmfusion.data.decode import decode_sample
from mmfusion.data.order import stable_hash
from mmfusion.data.shards import ShardSet
from mmfusion.types import Batch, DataError, Sample, SkipSample

AT_ONCE = 16  # samples of a batch that is calibrated with


@dataclass(frozen=True)
class Calibration:
    """`samples` of the training shards under `root`, drawn by a hash of their keys."""

    root: Path
    samples: int = 128


def quantize(
    folder: Path,
    out: Path,
    quantizer: Quantize,
    calibration: Calibration | None = None,
    allow: Collection[checkpoint.Allowed] = (),
) -> tuple[int, int]:
    """Write the checkpoint of `folder`, rounded, as the checkpoint folder `out`; bytes of both folders.

    Raises CheckpointError for one that holds integers already or an `out` that is there, DataError for a sample that
    cannot be calibrated with.
    """
    where = checkpoint.locate(folder)
    _check_place(out, where)
    if theirs := checkpoint.quantization(where):
        told = f"{where}: is quantized already ({theirs.get('scheme')})"
        raise CheckpointError(f"{told}; begin with the checkpoint that it was made of")
    model = api.load(where, allow)
    if quantizer.adapters == "merge":
        lora.merge(model.network)
    met: list[str] = []
    moments = calibrate(model.network, _batches(model, calibration, met)) if calibration else None
    quantizer.convert(model.network, moments)
    config = checkpoint.plain_yaml(where / checkpoint.CONFIG) | {QUANTIZATION: quantizer.node}
    lineage = {
        **model.lineage,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "quantized": _how(quantizer, calibration, met),
        "parents": [{"name": str(where), "sha256": weights_sha256(where)}],
    }
    checkpoint.save(
        out,
        config=config,
        model=model.network,
        tokenizer=where / checkpoint.TOKENIZER,
        lineage=lineage,
        card=report.card(
            f"{where.parent.name}, {quantizer.scheme}", [], [], api.Model(model.network, model.pipeline, lineage)
        ),
    )
    return bytes_of(where), bytes_of(out)


def _check_place(out: Path, where: Path) -> None:
    """Raises CheckpointError where nothing can be written, or where something would be in the way."""
    remedy = "give another folder with --out"
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out}: is there already; {remedy}, or remove it")
    if where.resolve() in out.resolve().parents:
        raise CheckpointError(f"{out}: is inside the checkpoint {where}; {remedy}")
    above = next(path for path in out.absolute().parents if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise CheckpointError(f"{out}: nothing can be written in {above}; {remedy}")


def _how(quantizer: Quantize, calibration: Calibration | None, met: Sequence[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"scheme": quantizer.scheme, "how": "rounded to nearest"}
    if calibration:
        data = checkpoint.data_of(calibration.root)
        told |= {"how": "calibrated", "samples": len(met), "data": data["fingerprint"]}
    return told


def _batches(model: api.Model, calibration: Calibration, met: list[str]) -> Iterator[Batch]:
    """Batches of the samples, whose keys are added to `met`."""
    samples = _samples(model, calibration)
    while chunk := list(itertools.islice(samples, AT_ONCE)):
        met += [sample.key for sample in chunk]
        yield model.pipeline.batch(chunk)


def _samples(model: api.Model, calibration: Calibration) -> Iterator[Sample]:
    shards = ShardSet(calibration.root, "train")
    drawn = sorted(range(len(shards)), key=lambda i: stable_hash("calibration", shards.key_of(i)))
    for i in drawn[: calibration.samples]:
        try:
            sample = decode_sample(model.pipeline.readable(shards.read(i)))
            model.pipeline.prepare(sample, 0, 0, documents="all")
        except SkipSample as error:
            told = f"{calibration.root}: calibration: key {shards.key_of(i)!r} cannot be used ({error})"
            raise DataError(f"{told}; mend it, or calibrate on other shards") from error
        yield sample
