"""`mmfusion runs show`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "everything about one run"
DESCRIPTION = "Show one run: state, command, commit, data, curves, metrics with intervals, files, what to do next."
EXAMPLES = "  mmfusion runs show runs/quickstart/TIME"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder: runs/NAME/TIME")


def run(options: argparse.Namespace) -> int:
    from mmfusion.console import console
    from mmfusion.runs import listing, tables

    tables.show(listing.read(Path(options.run_folder)), console())
    return 0
