"""An adapter as a folder in peft's layout: adapter_config.json and adapter_model.safetensors.

Any peft loads it. Read here it is only numbers: of the configuration just what makes a low-rank adapter is looked at.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from mmfusion.checkpoint.layout import CheckpointError
from mmfusion.checkpoint.weights import read_header
from mmfusion.converters import lora
from mmfusion.converters.importing import quietly

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # peft's, of a model inside its own
_READ = ("r", "lora_alpha", "use_dora", "target_modules")
_REFUSED = ("use_rslora", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias")


def save_adapter(folder: Path, model: nn.Module, base: str, name: str = lora.DEFAULT) -> None:
    """Write one of the model's adapters; `base` is the sha256 of the weights that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    of_model: Any = model
    config = of_model.peft_config[name]
    config.base_model_name_or_path = f"sha256:{base}"
    config.inference_mode = True
    config.save_pretrained(folder)
    state = quietly("peft").get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({_PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, folder / WEIGHTS)


def load_adapter(folder: Path, model: nn.Module, base: str, name: str = lora.DEFAULT) -> None:
    """Put an adapter beside the model's weights and switch to it.

    Raises CheckpointError for one of another `base` (the sha256 of its weights), or that is not whole.
    """
    peft = quietly("peft")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file}: missing; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        found = _numbers(config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be used ({error})") from error
    if (theirs := config.get("base_model_name_or_path")) != f"sha256:{base}":
        raise CheckpointError(f"{folder / CONFIG}: an adapter for the weights {theirs}, not for sha256:{base}")
    stored = read_header(folder / WEIGHTS)
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    try:
        lora.inject(model, peft.LoraConfig(**found), name)
        told: Any = peft.set_peft_model_state_dict(model, weights, adapter_name=name)
        ours = [key for key in model.state_dict() if ".lora_" in key and name in key.split(".")]
        if told.unexpected_keys or len(stored) != len(ours):
            raise ValueError(f"{len(stored)} tensors, not {len(ours)}")
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # torch lists every shape
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{folder / WEIGHTS}: does not have the tensors that its configuration asks for ({reason})"
        ) from error
    lora.use(model, name)


def _numbers(config: dict[str, Any]) -> dict[str, Any]:
    """What is read of a configuration. Raises ValueError where it is no adapter as `save_adapter` writes them."""
    found = {key: config[key] for key in _READ}
    rank, alpha, modules = found["r"], found["lora_alpha"], found["target_modules"]
    sound = (
        config.get("peft_type") == "LORA"
        and type(rank) is int
        and rank >= 1
        and type(alpha) in (int, float)
        and math.isfinite(alpha)
        and type(found["use_dora"]) is bool
        and isinstance(modules, list)
        and all(isinstance(name, str) and name for name in modules)
        and modules
    )
    if not sound:
        raise ValueError(f"no low-rank adapter, which has {', '.join(_READ)}")
    if set_ := [key for key in _REFUSED if config.get(key) not in (None, False, {}, [], "none")]:
        raise ValueError(f"{set_[0]} would change what it does, and is not known here")
    return found
