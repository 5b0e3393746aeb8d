"""`mmfusion train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import allow, configuration
from mmfusion.cli.start import for_good

HELP = "train, evaluate and report a run"
DESCRIPTION = "Train a model, evaluate it once on the test split, and write the run folder with its report."
EXAMPLES = """\
  mmfusion train                                    the quickstart experiment
  mmfusion train debug=one_step                     one step through everything
  mmfusion train seed=1 model.decoder.depth=2       other values
  mmfusion train -m seed=0,1,2                      one run after another
  mmfusion train resume=runs/quickstart/TIME        go on where a run stopped"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of a,b values")
    allow(parser)
    configuration(parser)


def run(options: argparse.Namespace) -> int:
    with for_good():
        from mmfusion.cli.launch import launch

    config_dir = Path(options.config_dir) if options.config_dir else None
    return launch(options.overrides, config_dir, multirun=options.multirun, allow=options.allow)
