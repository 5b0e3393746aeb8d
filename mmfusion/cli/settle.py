"""A composed configuration made whole and checked, before anything of it is built."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from mmfusion import checkpoint, config, runs
from mmfusion.cli import ranks
from mmfusion.cli.session import train
from mmfusion.config import ConfigError
from mmfusion.converters.quantize import Quantize
from mmfusion.training.reference import Learned

# What `train` itself gives the trainer, and the key that says it.
TRAINER = {"max_steps": "steps", "callbacks": "callbacks", "logger": "logger", "default_root_dir": "paths.run"}


def _check_rounding(tree: Mapping[str, Any]) -> None:
    """Raises ConfigError for a rounding that would not be what the run's end says, or a checkpoint that has another."""
    parent = tree.get("checkpoint") if not tree.get("resume") else None
    theirs = checkpoint.quantization(Path(parent)) if parent else None
    ours = f"{Quantize.__module__}.{Quantize.__qualname__}"
    for name, node in (tree.get("converter") or {}).items():
        if node["_target_"] != ours:
            continue
        converter = Quantize(**{argument: value for argument, value in node.items() if argument != "_target_"})
        key = f"converter.{name}"
        if converter.start >= tree["steps"]:
            raise ConfigError(
                [f"{key}.start={converter.start}: of {tree['steps']} steps none would round; set it lower"]
            )
        if converter.start and tree.get("keep") == "best":
            raise ConfigError([f"{key}.start: keep=best may keep weights from before it; set keep=last, or start=0"])
        if converter.distillation and tree.get("stage") == "policy":
            raise ConfigError([f"{key}.distillation: prompts have no answers to be taught; leave it out"])
        if theirs and converter.node != theirs:
            other = next((k for k, value in converter.node.items() if value != theirs.get(k)), "group")
            told = f"is quantized already, with {other}={theirs.get(other)}, not {converter.node.get(other)}"
            remedy = f"set {key}.{other} so, or begin with the checkpoint that it was made of"
            raise ConfigError([f"checkpoint={parent}: {told}; {remedy}"])


def _try_optimizer(tree: Mapping[str, Any]) -> None:
    """torch's own checks of rates, betas and schedules, before any data is opened: they stand in no signature."""
    key = "optim"
    try:
        optimizer = config.build(tree["optim"])([nn.Parameter(torch.zeros(1))])
        key = "scheduler"
        config.build(tree["scheduler"])(optimizer)
    except (ValueError, TypeError) as error:
        raise ConfigError([f"{key}: {' '.join(str(error).split())}"]) from error


def _refuse_unaveraged(callbacks: Mapping[str, Any]) -> None:
    """Raises ConfigError where weights would be saved without their average, which is only in what is saved whole."""
    nodes = {name: node for name, node in callbacks.items() if node}
    averaging = [name for name, node in nodes.items() if str(node["_target_"]).endswith("WeightAveraging")]
    raw = [name for name, node in nodes.items() if node.get("save_weights_only")]
    if averaging and raw:
        key = f"callbacks.{raw[0]}.save_weights_only"
        remedy = f"name it last, callbacks=[default,{averaging[0]}], or set {key}=false"
        raise ConfigError([f"{key}: true saves the weights without the average of callbacks.{averaging[0]}; {remedy}"])


def settled(cfg: DictConfig) -> dict[str, Any]:
    """The resolved and checked tree. Its `paths.run`, which other keys refer to, is set here where none was given."""
    name = str(config.raw(cfg).get("name"))
    if "${oc.env" in name or not name.isprintable():
        raise ConfigError(["name: must be plain text: it stands in folders and on pages"])
    try:
        if not cfg.paths.run:
            own = Path(cfg.paths.runs) / cfg.name / runs.timestamp()
            cfg.paths.run = ranks.folder_of_all() or str(own)
        cfg.paths.id = cfg.paths.id or hashlib.sha256(f"{cfg.paths.run} {time.time_ns()}".encode()).hexdigest()[:8]
    except (OmegaConfBaseException, TypeError):
        pass  # no folder or no name: the check says it better
    tree = config.plain(cfg)
    shared = [key for key in config.private(cfg) if re.match(r"model\.|data\.pipeline\.(?!tokenizer\.)", key)]
    if shared:
        remedy = "would stand in the checkpoint, which is shared; leave it out, and let the class read the environment"
        raise ConfigError([f"{key} {remedy}" for key in shared])
    config.check(tree, train, config.interpolated(cfg))
    if given := [name for name in TRAINER if name in tree["trainer"]]:
        raise ConfigError([f"trainer.{given[0]}: is given by {TRAINER[given[0]]}; set that"])
    if (precision := tree["trainer"].get("precision")) in ("bf16-true", "16-true"):
        raise ConfigError([f"trainer.precision: {precision} would halve times and places too; set bf16-mixed"])
    _refuse_unaveraged(tree["callbacks"])
    _try_optimizer(tree)
    if tree.get("checkpoint") and not tree.get("resume"):
        checkpoint.check_same(Path(tree["checkpoint"]), tree["model"], Path(tree["data"]["tokenizer"]))
    _check_rounding(tree)
    for _, node in config.nodes(tree["objective"], "objective"):
        if node.get("_target_") == f"{Learned.__module__}.{Learned.__qualname__}":
            checkpoint.check_vocabulary(Path(node["checkpoint"]), Path(tree["data"]["tokenizer"]))
    return tree
