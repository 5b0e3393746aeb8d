"""Linear maps that keep their weight in four bits and multiply with it in full: the base of QLoRA.

bitsandbytes is imported where there is a weight to pack or to unpack, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfusion.converters.importing import quietly
from mmfusion.converters.rounding import replace
from mmfusion.errors import UserError

BLOCK, BLOCK_OF_SCALES = 64, 256  # how many values share a scale
MARK = ".nf4."  # what stands in the names of what is kept packed


class NF4Linear(nn.Linear):
    """A linear map whose weight[out, in] is kept as 4-bit NormalFloat, with a scale for each 64 values (Dettmers et al.
    2305.14314, section 3): 4.5 bits a value, and 4.13 where the scales are quantized too (`double`).

    `weight` is what the packed values stand for, float32, made anew whenever it is asked for; it takes no gradient.
    """

    def __init__(self, linear: nn.Linear, double: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach()
        packed, state = _functional().quantize_4bit(
            weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=double
        )
        kept = {"packed": packed, "scale": state.absmax}
        if double:
            kept |= {"mean_scale": state.offset, "scale_of_scale": state.state2.absmax}
        self.nf4 = nn.ParameterDict({name: nn.Parameter(x, requires_grad=False) for name, x in kept.items()})

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  (torch's is no property)
        functional, kept = _functional(), self.nf4
        scale = kept["scale"]
        if "mean_scale" in kept:
            of_scale = kept["scale_of_scale"]
            scale = functional.dequantize_blockwise(scale, absmax=of_scale, blocksize=BLOCK_OF_SCALES)
            scale = scale + kept["mean_scale"]
        shape = torch.Size((self.out_features, self.in_features))
        state = functional.QuantState(scale, shape, blocksize=BLOCK, quant_type="nf4", dtype=torch.float32)
        return functional.dequantize_4bit(kept["packed"], state)

    def forward(self, input: Tensor) -> Tensor:
        product: Tensor = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x Wᵀ, for whose gradient the packed weight is kept and not the full one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: NF4Linear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.linear.weight.to(grads[0].dtype), None


def check_available() -> None:
    """Raises UserError, in one line, where this machine cannot pack weights.

    It makes the table that scales are quantized by, too, which cannot be made where tensors have no numbers.
    """
    try:
        _functional().quantize_4bit(torch.ones(BLOCK), quant_type="nf4", compress_statistics=True)
    except Exception as error:  # not installed, or its library does not fit the machine
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"converter: base=nf4 wants bitsandbytes, which does not run here ({reason}); install it, or take "
            "converter=[lora]"
        ) from error


def pack(model: nn.Module, names: list[str], *, double: bool) -> None:
    """Put `NF4Linear` in the place of the linear maps of these names."""
    for name in names:
        replace(model, name, NF4Linear(model.get_submodule(name), double))  # pyright: ignore[reportArgumentType]


def unpack(model: nn.Module) -> None:
    """Put plain linear maps, of what the packed ones stand for, in their place."""
    for name, packed in _packed(model).items():
        plain = nn.Linear(packed.in_features, packed.out_features, bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(packed.weight, requires_grad=False), packed.bias
        replace(model, name, plain)


def unpacked(model: nn.Module) -> dict[str, Tensor]:
    """The full weights of the packed maps by the names they would have, on the CPU, where there is room for them."""
    return {f"{name}.weight": packed.weight.cpu() for name, packed in _packed(model).items()}


def _packed(model: nn.Module) -> dict[str, NF4Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, NF4Linear)}


def _functional() -> Any:
    return quietly("bitsandbytes").functional
