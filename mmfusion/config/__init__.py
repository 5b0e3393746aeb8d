"""Configuration: compose (Hydra), check (against signatures), build. The only room that knows `_target_`."""

from mmfusion.config.building import build, build_arguments
from mmfusion.config.checks import check
from mmfusion.config.composition import ROOT, compose, conf_dir, conf_trees, told_in_one_line
from mmfusion.config.json_schema import json_schema
from mmfusion.config.listing import listing
from mmfusion.config.origins import origins
from mmfusion.config.overrides import as_overrides, groups
from mmfusion.config.printing import commented
from mmfusion.config.problems import ConfigError, near
from mmfusion.config.signatures import locate
from mmfusion.config.tree import (
    SECRET,
    from_environment,
    interpolated,
    leaves,
    nodes,
    plain,
    printable,
    private,
    raw,
    refuse_interpolations,
    targets,
    targets_in,
)

__all__ = [
    "ROOT", "SECRET", "ConfigError", "as_overrides", "build", "build_arguments", "check", "commented",
    "compose", "conf_dir", "conf_trees", "from_environment", "groups", "interpolated", "json_schema", "leaves",
    "listing", "locate", "near", "nodes", "origins", "plain", "printable", "private", "raw",
    "refuse_interpolations", "targets", "targets_in", "told_in_one_line",
]  # fmt: skip
