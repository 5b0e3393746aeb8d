"""`mmfusion config`: print the composed and checked configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from mmfusion import config


def run(options: argparse.Namespace) -> int:
    from mmfusion.cli.train import settled

    composed = config.compose(options.overrides, Path(options.config_dir) if options.config_dir else None)
    settled(composed)
    print(OmegaConf.to_yaml(OmegaConf.create(config.printable(composed))), end="")
    return 0
