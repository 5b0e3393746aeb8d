"""`mmfusion compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "runs side by side: configuration, curves, metrics"
DESCRIPTION = "Compare runs: where their configurations differ, curves, metrics; on the terminal and as an HTML page."
EXAMPLES = """\
  mmfusion compare runs/quickstart/TIME runs/quickstart/OTHER
  mmfusion compare runs/quickstart/* --out quickstart.html"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folders", nargs="+", metavar="RUN", help="run folders, two to six")
    parser.add_argument("--out", default="compare.html", metavar="FILE", help="the page (compare.html)")


def run(options: argparse.Namespace) -> int:
    from mmfusion.console import console
    from mmfusion.runs import RunError, comparison, side_by_side

    found = comparison.compare([Path(folder) for folder in options.run_folders])
    side_by_side.show(found, console())

    from mmfusion.report.compare import write

    page = Path(options.out)
    try:
        write(page, found)
    except OSError as error:
        raise RunError(f"--out {page}: cannot be written ({error.strerror}); choose another file") from error
    print(f"\ncurves and all of this as a page: {page.resolve().as_uri()}")
    return 0
