"""`mmfusion`: parse the verb, run it, turn what went wrong into one line and an exit status.

0 done, 1 failed, 2 the configuration or command line is wrong, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import io
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from mmfusion.cli import start
from mmfusion.cli.flags import own_code_found
from mmfusion.cli.signals import on_sigterm

# Each verb is a module of this folder (`data pack`: data_pack) with HELP, DESCRIPTION, EXAMPLES, `arguments(parser)`
# and `run(options) -> status`. What a module imports at its top is imported by `mmfusion --help`: nothing heavy.
VERBS = (
    "train", "sweep", "evaluate", "generate", "embed", "quantize",
    "data pack", "data show", "data stats",
    "runs ls", "runs show", "runs best", "compare",
    "plan", "config",
)  # fmt: skip
GROUPS = {  # the first word of verbs of two words, and what it is about
    "data": "make shards of your own data, and look into them",
    "runs": "what runs there are, read from their folders",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmfusion",
        description="Train, evaluate and sample multimodal models of pictures, sound, sensor series and text.",
        epilog="example:\n  mmfusion train            train, evaluate and report the quickstart experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = {"": parser.add_subparsers(metavar="VERB", required=True)}
    for verb in VERBS:
        group, _, name = verb.rpartition(" ")
        if group not in verbs:
            grouped = verbs[""].add_parser(group, help=GROUPS[group], description=GROUPS[group].capitalize() + ".")
            verbs[group] = grouped.add_subparsers(metavar="VERB", required=True)
        module = import_module(f"mmfusion.cli.{verb.replace(' ', '_')}")
        made = verbs[group].add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(made)
        made.set_defaults(run=module.run, parser=made, verb=verb)
    return parser


def _terminate(number: int, frame: object) -> None:
    """A verb ends as by Ctrl-C, so that nothing half-made stays; `train` hears the signal in its own way."""
    print("stopped", file=sys.stderr)
    raise SystemExit(143)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parser = _parser()
    start.for_one_verb = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    given = ["runs", "ls"] if given == ["runs"] else given
    options, more = parser.parse_known_args(given)
    if more:  # what stands behind a flag, where argparse gave its place away already
        options = options.parser.parse_intermixed_args(given[len(options.verb.split()) :])
    from mmfusion.config import ConfigError
    from mmfusion.errors import UserError
    from mmfusion.runs.provenance import without_secrets

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without some letters shows their numbers
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with own_code_found(options), on_sigterm(_terminate):
            return options.run(options)
    except ConfigError as error:
        for problem in error.problems:
            print(f"mmfusion: {without_secrets(problem)}", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output (`| head`) is gone
            return 1
        print(f"mmfusion: {without_secrets(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:  # a fault of ours: the trace for whoever mends it, the last line for everyone else
        traceback.print_exception(error)
        told = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
        print(f"mmfusion: {told}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
