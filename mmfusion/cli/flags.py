"""Flags that several verbs share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OVERRIDES = "KEY=VALUE, as Hydra takes them: model.decoder.depth=6, trainer.precision=bf16-mixed, experiment=quickstart"

STATES = ("running", "evaluating", "finished", "failed", "stopped", "killed", "unknown")


def positive(text: str) -> int:
    """The type of a flag that counts from one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def positive_number(text: str) -> float:
    """The type of a flag that measures something."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def configuration(parser: argparse.ArgumentParser) -> None:
    """`KEY=VALUE… --config-dir FOLDER`."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    config_dir(parser)


def config_dir(parser: argparse.ArgumentParser) -> None:
    help = "a configuration tree of your own, searched beside ours; a package of yours may stand next to it"
    parser.add_argument("--config-dir", metavar="FOLDER", help=help)


def allow(parser: argparse.ArgumentParser) -> None:
    """`--allow my_pkg.MyEncoder`, on every verb that loads a run or checkpoint."""
    help = "class of your own that a run folder or checkpoint may build; may be given several times"
    parser.add_argument("--allow", action="append", default=[], metavar="CLASS", help=help)


def which_runs(parser: argparse.ArgumentParser) -> None:
    """`[FOLDER] --state --name --stage`: which runs a verb is about."""
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="where runs are kept (runs)")
    parser.add_argument("--state", choices=STATES, metavar="STATE", help=", ".join(STATES))
    parser.add_argument("--name", help="the run's name, or a pattern of name or folder: 'quick*'", metavar="NAME")
    parser.add_argument("--stage", help="pretrain, finetune, preference", metavar="STAGE")


def series(parser: argparse.ArgumentParser) -> None:
    """`--rate-hz --channels --units --place`: what a series' file does not say."""
    parser.add_argument("--rate-hz", type=float, metavar="HZ", help="rate of series without a column of times")
    for name, example in (("channels", "acc_x,acc_y"), ("units", "m/s^2,m/s^2")):
        help = f"of series whose file names none (.npy), one for each column: {example}"
        parser.add_argument(f"--{name}", type=_names, default=(), metavar="A,B", help=help)
    parser.add_argument("--place", metavar="TEXT", help='where series were measured: "right wrist"')


def described(options: argparse.Namespace) -> dict[str, Any]:
    """What `series` parsed, as `mmfusion.load(…).embed` takes it."""
    return {name: getattr(options, name) for name in ("rate_hz", "channels", "units", "place")}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@contextmanager
def own_code_found(options: argparse.Namespace) -> Iterator[None]:
    """Python finds a package that is not installed: next to `--config-dir`, and here where `--allow` names a class.

    These folders come last, so that nothing in them stands before what is installed.
    """
    before = list(sys.path)
    given = getattr(options, "config_dir", None)
    folders = [Path(given).resolve().parent] if given else []
    if getattr(options, "allow", None):
        folders.append(Path.cwd())
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        yield
    finally:
        sys.path[:] = before
