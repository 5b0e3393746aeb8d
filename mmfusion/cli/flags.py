"""Flags that several verbs share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

OVERRIDES = "KEY=VALUE, as Hydra takes them: model.decoder.depth=6, trainer.precision=bf16-mixed, experiment=quickstart"


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


def find_own_code(options: argparse.Namespace) -> None:
    """Lets Python find a package that is not installed: next to `--config-dir`, and here where `--allow` names a class.

    These folders come last, so that nothing in them stands before what is installed.
    """
    given = getattr(options, "config_dir", None)
    folders = [Path(given).resolve().parent] if given else []
    if getattr(options, "allow", None):
        folders.append(Path.cwd())
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
