"""`mmfusion config`: print the composed and checked configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import configuration

HELP = "print the composed configuration, or check it"
DESCRIPTION = "Print the configuration that `train` would use, checked, without running it."
EXAMPLES = "  mmfusion config experiment=quickstart optim.lr=1e-3"


def arguments(parser: argparse.ArgumentParser) -> None:
    configuration(parser)


def run(options: argparse.Namespace) -> int:
    from omegaconf import OmegaConf

    from mmfusion import config
    from mmfusion.cli.session import settled

    composed = config.compose(options.overrides, Path(options.config_dir) if options.config_dir else None)
    settled(composed)
    print(OmegaConf.to_yaml(OmegaConf.create(config.printable(composed))), end="")
    return 0
