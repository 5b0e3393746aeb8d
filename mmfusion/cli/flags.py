"""Flags that several verbs share."""

from __future__ import annotations

import argparse

OVERRIDES = "KEY=VALUE, as Hydra takes them: model.decoder.depth=6, trainer.precision=bf16-mixed, experiment=quickstart"

STATES = ("running", "evaluating", "finished", "failed", "stopped", "killed", "unknown")


def positive(text: str) -> int:
    """The type of a flag that counts from one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def configuration(parser: argparse.ArgumentParser) -> None:
    """`KEY=VALUE… --config-dir FOLDER`."""
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=OVERRIDES)
    config_dir(parser)


def config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", metavar="FOLDER", help="a configuration tree of your own, searched beside ours")


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
