"""`mmfusion embed`: files and texts to a Parquet table of embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import allow, described, series
from mmfusion.cli.start import for_good

HELP = "turn files and texts into a Parquet table of embeddings"
DESCRIPTION = """\
Write one row for each picture, sound, series or text: path, modality, text, embedding (float32, of unit norm).
Files that cannot be read are named and counted, and have no row; the status is 1 if none could."""
EXAMPLES = """\
  mmfusion embed runs/quickstart/TIME photos/*.jpg sounds/*.ogg --out embeddings.parquet
  mmfusion embed RUN watch.csv --rate-hz 50 --text "a cat" --text "a dog" --out embeddings.parquet"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder or checkpoint folder")
    parser.add_argument("files", nargs="*", metavar="FILE", help="pictures, sounds, series (CSV, .npy), in any mixture")
    parser.add_argument("--text", action="append", default=[], help="a text to embed; may be given several times")
    parser.add_argument("--out", required=True, metavar="FILE", help="the Parquet file to write")
    series(parser)
    allow(parser)


def run(options: argparse.Namespace) -> int:
    with for_good():
        from mmfusion import api, embeddings

    files = [Path(name) for name in options.files]
    embeddings.check_place(Path(options.out), files)
    model = api.load(options.folder, allow=options.allow)
    left_out = embeddings.write(Path(options.out), model, files, options.text, described(options))
    return int(left_out == len(files) + len(options.text))
