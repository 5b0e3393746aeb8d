"""An adapter as a folder in peft's layout: adapter_config.json and adapter_model.safetensors.

Any peft loads it. Read here it is only numbers: of the configuration just what makes a low-rank adapter is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from mmfusion.checkpoint.layout import CheckpointError
from mmfusion.checkpoint.weights import read_header
from mmfusion.converters import lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # peft's, of a model inside its own
_KINDS: dict[str, Any] = {"r": int, "lora_alpha": (int, float), "use_dora": bool, "target_modules": list}


def save_adapter(folder: Path, model: nn.Module, base: str, name: str = lora.DEFAULT) -> None:
    """Write one of the model's adapters; `base` is the sha256 of the weights that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    of_model: Any = model
    config = of_model.peft_config[name]
    config.base_model_name_or_path = f"sha256:{base}"
    config.inference_mode = True
    config.save_pretrained(folder)
    state = lora.imported().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({_PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, folder / WEIGHTS)


def load_adapter(folder: Path, model: nn.Module, base: str, name: str = lora.DEFAULT) -> None:
    """Put an adapter beside the model's weights and switch to it.

    Raises CheckpointError for one of another `base` (the sha256 of its weights), or that is not whole.
    """
    peft = lora.imported()
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file}: missing; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        found = {key: config[key] for key in _KINDS}
        if config.get("peft_type") != "LORA" or not all(isinstance(found[k], kind) for k, kind in _KINDS.items()):
            raise ValueError(f"no low-rank adapter, which has {', '.join(_KINDS)}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be used ({error})") from error
    if (theirs := config.get("base_model_name_or_path")) != f"sha256:{base}":
        raise CheckpointError(f"{folder / CONFIG}: an adapter for the weights {theirs}, not for sha256:{base}")
    stored = read_header(folder / WEIGHTS)
    lora.inject(model, peft.LoraConfig(**found), name)
    weights = {key.removeprefix(_PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    try:
        told: Any = peft.set_peft_model_state_dict(model, weights, adapter_name=name)
        ours = [key for key in model.state_dict() if ".lora_" in key and name in key.split(".")]
        if told.unexpected_keys or len(stored) != len(ours):
            raise ValueError(f"{len(stored)} tensors, not {len(ours)}")
    except (RuntimeError, ValueError) as error:  # torch lists every shape
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{folder / WEIGHTS}: does not have the tensors that its configuration asks for ({reason})"
        ) from error
    lora.use(model, name)
