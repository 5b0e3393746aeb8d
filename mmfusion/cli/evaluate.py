"""`mmfusion evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import allow, config_dir
from mmfusion.cli.start import for_good

HELP = "metrics of checkpoints on any shards, side by side or along a run"
DESCRIPTION = """\
Evaluate checkpoints on shards. One gives a table of metrics with intervals, chance and baselines; several give one
table with the differences to the first and their paired intervals; --curve takes every point that a run kept.
Tasks are the run's own on its own shards and those of evaluation=any on others: with a manifest, or plain tars."""
EXAMPLES = """\
  mmfusion evaluate runs/quickstart/TIME
  mmfusion evaluate 'runs/quickstart/*' --split validation           the first and its differences to the others
  mmfusion evaluate runs/quickstart/TIME --data-root /data/tars      any shards, or tars as img2dataset writes them
  mmfusion evaluate runs/quickstart/TIME --task captions evaluation.captions.limit=512
  mmfusion evaluate runs/quickstart/TIME --curve --out curve         metrics.json and a page with curves"""


def arguments(parser: argparse.ArgumentParser) -> None:
    what = "run or checkpoint folders, quoted patterns of them; then evaluation=NAME, evaluation.TASK.KEY=VALUE"
    parser.add_argument("overrides", nargs="+", metavar="RUN_OR_DIR", help=what)
    parser.add_argument("--data-root", metavar="FOLDER", help="shards to evaluate on (those the run was trained on)")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--curve", action="store_true", help="every resume point of a run, and its checkpoint")
    parser.add_argument("--out", metavar="FOLDER", help="write metrics.json and evaluation.html there")
    allow(parser)
    config_dir(parser)


def run(options: argparse.Namespace) -> int:
    with for_good():
        from mmfusion.cli.asked import asked
        from mmfusion.cli.examine import along, ready, several, single

    configs = Path(options.config_dir) if options.config_dir else None
    about = asked(
        options.overrides,
        root=Path(options.data_root) if options.data_root else None,
        only=options.task,
        config_dir=configs,
        allow=options.allow,
        along=options.curve,
    )
    out = Path(options.out) if options.out else None
    if out:
        ready(out)
    how = along if options.curve else several if len(about.folders) > 1 else single
    return how(about, options.split, options.allow, out)
