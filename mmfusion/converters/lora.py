"""Low-rank adapters, through peft: a few weights beside a model that stays as it is.

peft is imported where there is an adapter to make or to load, and nowhere else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn

DEFAULT = "default"  # the name of the adapter that a model was trained with
_BASE = ".base_layer."  # what peft puts into the names of a layer that has adapters


class Lora:
    """Adapters of `rank` beside every linear map of `parts` (Hu et al. 2106.09685); all else is frozen.

    `parts` are names below the model, such as `decoder` or `encoders.image`. An update is scaled by `alpha` / `rank`.
    With `dora` the length of a weight is learnt apart from its direction (Liu et al. 2402.09353).
    """

    def __init__(
        self,
        *,
        parts: Annotated[Sequence[str], MinLen(1)] = ("decoder",),
        rank: Annotated[int, Gt(0)] = 8,
        alpha: Annotated[float, Gt(0)] = 16.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        dora: bool = False,
    ) -> None:
        self.parts, self.rank, self.alpha, self.dropout, self.dora = tuple(parts), rank, alpha, dropout, dora

    def __call__(self, model: nn.Module, name: str = DEFAULT) -> nn.Module:
        """The model, changed in place. Raises ValueError for a part that has no linear map."""
        peft = imported()
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            target_modules=[module for part in self.parts for module in _linear(model, part)],
        )
        return inject(model, config, name)


def imported() -> Any:
    """peft, without what bitsandbytes, which it looks for, says of kernels that a CPU does not have."""
    quiet = logging.getLogger("bitsandbytes")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        import peft
    finally:
        quiet.setLevel(level)
    return peft


def inject(model: nn.Module, config: Any, name: str) -> nn.Module:
    """peft's layers around those that its configuration names, for an adapter more; in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
        return imported().inject_adapter_in_model(config, model, name)


def _linear(model: nn.Module, part: str) -> list[str]:
    """The names of the linear maps of a part, whether they have adapters already or not."""
    found = [
        name.removesuffix(_BASE.rstrip("."))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.".startswith(f"{part}.") and ".lora_" not in name
    ]
    if not found:
        raise ValueError(f"converter.lora.parts: the model has no linear map below {part!r}")
    return found


def layers(model: nn.Module) -> list[Any]:
    """Its layers that have adapters."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def names(model: nn.Module) -> list[str]:
    """The adapters of a model, in the order in which they came."""
    return list(dict.fromkeys(name for layer in layers(model) for name in layer.lora_A))


def use(model: nn.Module, name: str | None) -> None:
    """Switch to one of a model's adapters, or to none; nothing is loaded or copied."""
    for layer in layers(model):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters, as long as the block lasts; what was trainable is so again afterwards."""
    found = layers(model)
    for layer in found:
        layer._disable_adapters = True  # enable_adapters would also change what is trained
    try:
        yield
    finally:
        for layer in found:
            layer._disable_adapters = False


def base_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state without its adapters, under the names that it has without them."""
    return {name.replace(_BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def merge(model: nn.Module) -> nn.Module:
    """The weights of the adapter in use added to the model's own, and no adapter left; in place."""
    adapted = layers(model)
    for name, module in list(model.named_modules()):
        if any(module is layer for layer in adapted):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model
