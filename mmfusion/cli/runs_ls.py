"""`mmfusion runs ls`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmfusion.cli.flags import which_runs

HELP = "list runs, the newest first"
DESCRIPTION = "List the runs below a folder: state, steps, losses and metrics, read from the run folders alone."
EXAMPLES = """\
  mmfusion runs ls
  mmfusion runs ls --state killed
  mmfusion runs ls --name 'quick*' --sort val/loss --metric picture_to_name/R@1
  mmfusion runs ls sweeps --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    which_runs(parser)
    parser.add_argument(
        "--sort", default="began", metavar="KEY", help="began, name, state, stage, steps, took, a metric"
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--metric", action="append", default=[], metavar="TASK/METRIC", help="a column for it")
    parser.add_argument("--json", action="store_true", help="all that is known of them, for programs")


def run(options: argparse.Namespace) -> int:
    import json

    from mmfusion.console import console
    from mmfusion.runs import choosing, listing, tables, words

    root = Path(options.folder)
    logs = options.json or bool(options.metric) or options.sort not in choosing.ORDERS
    found, problems = listing.read_all(root, logs=logs)
    found = choosing.chosen(found, state=options.state, name=options.name, stage=options.stage)
    found = choosing.ordered(found, options.sort, reverse=options.reverse)
    for problem in problems:
        print(f"left out: {words.printable(problem)}", file=sys.stderr)
    if options.json:
        print(json.dumps([one.as_json() for one in found], indent=1, allow_nan=False))
        return 0
    metrics = [choosing.metric_named(found, name) for name in options.metric] or tables.key_metrics(found)
    out = console()
    out.print(tables.listed(found, root, metrics, out.width) if found else "none of the runs is of that kind")
    return 0
