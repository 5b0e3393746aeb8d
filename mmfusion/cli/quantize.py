"""`mmfusion quantize`: round a trained checkpoint to integers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmfusion.cli.flags import allow, positive
from mmfusion.cli.start import for_good

HELP = "round a trained checkpoint to integers"
DESCRIPTION = """\
Write a checkpoint whose weights are integers: rounded to nearest, or with scales fitted to what layers are given on
some samples. Nothing is trained; `mmfusion train checkpoint=RUN converter=[int8]` lets a model learn to be rounded."""
EXAMPLES = """\
  mmfusion quantize runs/quickstart/TIME --scheme int8
  mmfusion quantize RUN --scheme int4 --group 64 --part embeddings=int8 --part encoders.sensor=none
  mmfusion quantize RUN --scheme int4 --calibrate data_prep/sample --samples 256 --out small"""

SCHEMES = ("int8", "int8_int4", "int4")  # converters.rounding.Scheme, which --help need not import torch for


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder or checkpoint folder")
    help = "int8: weights and inputs in 8 bits; int8_int4: weights in 4, inputs in 8; int4: weights in 4"
    parser.add_argument("--scheme", choices=SCHEMES, required=True, help=help)
    parser.add_argument("--group", type=positive, default=32, metavar="N", help="4-bit weights that share a scale (32)")
    help = "another scheme, or none, for a part: decoder, encoders.image, embeddings, head; may be given several times"
    parser.add_argument("--part", action="append", default=[], metavar="PART=SCHEME", help=help)
    parser.add_argument("--merge", action="store_true", help="add an adapter to the weights first (it is kept apart)")
    parser.add_argument("--calibrate", metavar="FOLDER", help="fit scales on training shards there")
    parser.add_argument("--samples", type=positive, default=128, metavar="N", help="how many to calibrate with (128)")
    parser.add_argument("--out", metavar="FOLDER", help="the checkpoint to write (beside RUN's, named by the scheme)")
    allow(parser)


def run(options: argparse.Namespace) -> int:
    given_parts = [_part(text, options.parser) for text in options.part]
    parts: dict[str, Any] = dict(given_parts)
    if len(parts) < len(given_parts):
        options.parser.error("--part: one part is given twice")
    with for_good():
        from mmfusion import checkpoint, quantization
        from mmfusion.converters.quantize import Quantize

    where = checkpoint.locate(Path(options.folder)).resolve()
    beside = options.scheme if where.name == "checkpoint" else f"{where.name}-{options.scheme}"
    out = Path(options.out) if options.out else where.with_name(beside)
    quantizer = Quantize(
        scheme=options.scheme, group=options.group, parts=parts, adapters="merge" if options.merge else "keep"
    )
    given = quantization.Calibration(Path(options.calibrate), options.samples) if options.calibrate else None
    before, after = quantization.quantize(where, out, quantizer, given, options.allow)
    print(f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB, {after / before:.3f} of it")
    print(f"checkpoint  {out}\n\nwhat it cost: mmfusion evaluate {where} {out}")
    return 0


def _part(text: str, parser: argparse.ArgumentParser) -> tuple[str, str]:
    part, _, scheme = text.partition("=")
    if scheme not in (*SCHEMES, "none"):
        parser.error(f"--part {text}: is no PART=SCHEME; schemes are {', '.join(SCHEMES)}, none")
    return part, scheme
