"""Low-rank adapters, through peft: a few weights beside a model that stays as it is.

peft is imported where there is an adapter to make or to load, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor, nn

from mmfusion.converters import nf4
from mmfusion.converters.importing import quietly

DEFAULT = "default"  # the name of the adapter that a model was trained with
_READ = "decoder.head"  # whose weight the objectives read, past any adapter
_BASE = ".base_layer."  # what peft puts into the names of a layer that has adapters


class Lora:
    """Adapters of `rank` beside every linear map of `parts` (Hu et al. 2106.09685); all else is frozen.

    `parts` are names below the model, such as `decoder` or `encoders.image`. An update is scaled by `alpha` / `rank`.
    With `dora` the length of a weight is learnt apart from its direction (Liu et al. 2402.09353). With a `base` in nf4
    these linear maps keep their weights in four bits (QLoRA, see `nf4.NF4Linear`; nf4-double quantizes the scales too).
    Training rounds them: a checkpoint has the rounded weights, in full, so that it says what the trained model said and
    anything reads it; it is not smaller for it. Raises UserError where this machine has no bitsandbytes.
    """

    def __init__(
        self,
        *,
        parts: Annotated[Sequence[str], MinLen(1)] = ("decoder",),
        rank: Annotated[int, Gt(0)] = 8,
        alpha: Annotated[float, Gt(0)] = 16.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        dora: bool = False,
        base: Literal["nf4", "nf4-double"] | None = None,
    ) -> None:
        self.parts, self.rank, self.alpha, self.dropout, self.dora = tuple(parts), rank, alpha, dropout, dora
        self.base = base
        if base:
            nf4.check_available()

    def __call__(self, model: nn.Module, name: str = DEFAULT) -> nn.Module:
        """The model, changed in place. Raises ValueError for a part that has no linear map."""
        peft = quietly("peft")
        linear = [module for part in self.parts for module in _linear(model, part)]
        if self.base:
            nf4.pack(model, linear, double=self.base == "nf4-double")
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            target_modules=[module.removesuffix(_BASE.rstrip(".")) for module in linear],
        )
        return inject(model, config, name)


def inject(model: nn.Module, config: Any, name: str) -> nn.Module:
    """peft's layers around those that its configuration names, for an adapter more; in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # weights are merged in full
        return quietly("peft").inject_adapter_in_model(config, model, name)


def _linear(model: nn.Module, part: str) -> list[str]:
    """The names of the linear maps of a part, whether they have adapters already or not."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.".startswith(f"{part}.")
        and ".lora_" not in name
        and name != _READ
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


def base_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's `state` without its adapters, under the names that it has without them, and with no weight packed."""
    full = {name: tensor for name, tensor in state.items() if ".lora_" not in name and nf4.MARK not in name}
    return {name.replace(_BASE, "."): tensor for name, tensor in {**full, **nf4.unpacked(model)}.items()}


def merge(model: nn.Module) -> nn.Module:
    """The weights of the adapter in use added to the model's own, and no adapter left; in place, and in full."""
    nf4.unpack(model)
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
