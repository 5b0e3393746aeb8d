"""`mmfusion`: parse the verb, run it, turn what went wrong into one line and an exit status.

0 done, 1 failed, 2 the configuration or command line is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

OVERRIDES = "KEY=VALUE, as Hydra takes them: model.decoder.depth=6, trainer.precision=bf16-mixed, experiment=quickstart"


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="mmfusion",
        description="Train, evaluate and sample multimodal models of pictures, sound, sensor series and text.",
        epilog="example:\n  mmfusion train            train, evaluate and report the quickstart experiment",
        formatter_class=raw,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    train = verbs.add_parser(
        "train",
        help="train, evaluate and report a run",
        description="Train a model, evaluate it once on the test split, and write the run folder with its report.",
        epilog=(
            "examples:\n"
            "  mmfusion train                                    the quickstart experiment\n"
            "  mmfusion train debug=one_step                     one step through everything\n"
            "  mmfusion train seed=1 model.decoder.depth=2       other values\n"
            "  mmfusion train -m seed=0,1,2                      one run after another\n"
            "  mmfusion train resume=runs/quickstart/TIME        go on where a run stopped"
        ),
        formatter_class=raw,
    )
    train.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of a,b values")
    train.add_argument("--allow", action="append", default=[], metavar="CLASS", help="own class that resume= may build")
    _configuration(train)

    config = verbs.add_parser(
        "config",
        help="print the composed configuration, or check it",
        description="Print the configuration that `train` would use, checked, without running it.",
        epilog="example:\n  mmfusion config experiment=quickstart optim.lr=1e-3",
        formatter_class=raw,
    )
    _configuration(config)
    return parser


def _configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    parser.add_argument("--config-dir", metavar="FOLDER", help="a configuration tree of your own, searched beside ours")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    options = _parser().parse_args(arguments)
    from mmfusion.config import ConfigError

    try:
        if options.verb == "config":
            from mmfusion.cli.config import run
        else:
            from mmfusion.cli.train import run
        return run(options)
    except ConfigError as error:
        for problem in error.problems:
            print(f"mmfusion: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (`| head`) is gone
        return 1
    except Exception as error:  # a fault of ours: the trace for whoever mends it, the last line for everyone else
        traceback.print_exception(error)
        print(f"mmfusion: {' '.join(str(error).split())[:300] or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
