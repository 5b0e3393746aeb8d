"""`mmfusion runs best`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mmfusion.cli.flags import positive, which_runs

HELP = "the best runs by a metric"
DESCRIPTION = "Rank the runs below a folder by a metric: losses and ranks from the lowest, all else from the highest."
EXAMPLES = """\
  mmfusion runs best val/loss
  mmfusion runs best picture_to_name/R@1 --n 3 --state finished"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("metric", metavar="METRIC", help="TASK/METRIC as in metrics.json, or val/loss")
    which_runs(parser)
    parser.add_argument("--n", type=positive, default=5, help="how many (5)")


def run(options: argparse.Namespace) -> int:
    from mmfusion.console import console
    from mmfusion.runs import choosing, listing, tables, words

    root = Path(options.folder)
    found, problems = listing.read_all(root, logs=True)
    for problem in problems:
        print(f"left out: {words.printable(problem)}", file=sys.stderr)
    found = choosing.chosen(found, state=options.state, name=options.name, stage=options.stage)
    name = choosing.metric_named(found, options.metric)
    best = choosing.ordered([one for one in found if name in one.values], name)[: options.n]
    out = console()
    end = "lowest" if choosing.lower_is_better(name) else "highest"
    out.print(f"{words.printable(name)}, the {end} first", soft_wrap=True)
    out.print(tables.ranked(best, root, name))
    if len({one.data for one in best}) > 1:
        out.print("not all of the same data: their values are not comparable")
    if len(best) > 1 and any(one.values[name].ci95 for one in best):
        first = words.printable(shlex.quote(str(best[0].folder)))
        out.print(f"Intervals of two runs that overlap are no test; paired: mmfusion evaluate {first} …")
    return 0
