"""How layers are rounded to integers, while they are trained and for good.

torchao has the tensors of integers and the layers that round while they learn; it is imported where there is something
to quantize, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfusion.converters.importing import quiet, quietly
from mmfusion.errors import UserError

Scheme = Literal["int8", "int8_int4", "int4"]


@dataclass(frozen=True)
class Rounding:
    """How a layer is rounded. A `table` is read by rows and multiplied with nothing that is rounded; `group` weights of
    a row share a scale."""

    scheme: Scheme
    table: bool
    group: int

    @property
    def most(self) -> int:
        """The largest integer of a weight."""
        return 127 if self.scheme == "int8" else 7

    @property
    def integer_product(self) -> bool:
        """Whether integers are multiplied with integers; all others make full numbers of them first."""
        return self.scheme == "int8" and not self.table

    def prepare(self, model: nn.Module, names: Collection[str]) -> None:
        """Let these layers round in the forward pass, and learn in full; in place."""
        qat = quietly("torchao.quantization.qat")
        how = {"weight_config": qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)}
        if self.scheme != "int4" and not self.table:
            how["activation_config"] = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
        with quiet():
            torchao().quantize_(model, qat.QATConfig(**how, step="prepare"), among(names))
        for name in names:
            layer: Any = model.get_submodule(name)
            layer.weight_fake_quantizer = Rounded(self)
            if self.integer_product:
                layer.forward = MethodType(_integer_product, layer)

    def convert(self, model: nn.Module, names: Collection[str]) -> None:
        """Let these layers, plain ones, hold integers; in place."""
        for name in names:
            layer: Any = model.get_submodule(name)
            layer.weight = nn.Parameter(self.held(layer.weight.detach()), requires_grad=False)
            if isinstance(layer, nn.Embedding):
                replace(model, name, ByRow(layer))
            elif self.integer_product:
                replace(model, name, IntegerLinear(layer))

    def held(self, weight: Tensor) -> Any:
        """torchao's tensor of integers for a weight[out, in]."""
        steps, step = in_steps(weight.unflatten(1, (-1, self.group)), self.most)
        integers, scale = steps.flatten(1).to(torch.int8), step.squeeze(-1)
        if self.integer_product:
            return torchao().Int8Tensor(integers, scale, [1, self.group], weight.dtype)
        groups = quietly("torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor")
        inputs = groups.IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN
        return torchao().IntxUnpackedToInt8Tensor(
            qdata=integers,
            scale=scale,
            zero_point=torch.zeros_like(scale, dtype=torch.int8),
            target_dtype=torch.int8 if self.scheme == "int8" else getattr(torch, "int4"),  # noqa: B009  (stubs lack it)
            block_size=(1, self.group),
            dtype=weight.dtype,
            activation_quantization=inputs if self.scheme == "int8_int4" and not self.table else None,
        )


def in_steps(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """x[..., D] in steps, whole numbers from -most - 1 to `most` as float32, and how long a step is, [..., 1].

    The largest number has the largest integer, so that what was rounded once stays as it is when it is rounded again.
    torchao's default puts it half a step beyond, from where the last bit of a sum decides which way it falls: for
    inputs that is 1% of what a model says. So nothing is beyond the ends, and nothing has to be cut off.
    """
    x = x.float()
    low, high = x.aminmax(dim=-1, keepdim=True)
    step = torch.maximum(high / most, low / (-most - 1)).clamp_(min=torch.finfo(torch.float32).eps)
    return (x * step.reciprocal()).round_(), step


class Rounded(nn.Module):
    """A weight[out, in] as it will be held, in full numbers; the gradient goes straight through."""

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.rounding, self.enabled = rounding, True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        return _StraightThrough.apply(weight, self.rounding.group, self.rounding.most)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: int, most: int) -> Tensor:
        steps, step = in_steps(weight.unflatten(1, (-1, group)), most)
        return (steps * step).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class IntegerLinear(nn.Linear):
    """A linear map that multiplies integers with integers: tokens of its input, in steps, and rows of its weight.

    As torchao's own layer, with a quarter of its operators: on a CPU, and with one token, these take most of the time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        held: Any = self.weight
        steps, step = in_steps(input.reshape(-1, self.in_features), 127)
        y = product(steps.to(torch.int8), held.qdata.t()).float().mul_(step).mul_(held.scale.flatten())
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*input.shape[:-1], self.out_features).to(input.dtype)


def _integer_product(layer: Any, input: Tensor) -> Tensor:
    """What `IntegerLinear` will make of x[..., D]: sums of integers, which in float32 are exact up to 1,040 of them and
    beyond that nearly so; of what they stand for they would not be, and the next layer's rounding would make much of
    that. The gradient is that of the rounded weight and input, and goes straight through the rounding.
    """
    if not layer.weight_fake_quantizer.enabled:
        return F.linear(input, layer.weight, layer.bias)
    with torch.autocast(input.device.type, enabled=False):
        steps, step = _Steps.apply(input)
        of_weight, step_of_weight = _Steps.apply(layer.weight)
        y = F.linear(steps, of_weight) * step * step_of_weight.flatten()
        return (y if layer.bias is None else y + layer.bias).to(input.dtype)


class _Steps(torch.autograd.Function):
    """`in_steps`, where the length of a step has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        steps, step = in_steps(x, 127)
        ctx.save_for_backward(step)
        ctx.mark_non_differentiable(step)
        return steps, step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (step,) = ctx.saved_tensors
        return grads[0] / step


def product(a: Tensor, b: Tensor) -> Tensor:
    """int8[n, k] times int8[k, m], int32; padded for a GPU's kernel, which wants 17 rows and multiples of 8."""
    kernel = getattr(torch, "_int_mm")  # noqa: B009  (private)
    if a.device.type != "cuda":
        return kernel(a, b)
    (n, k), m = a.shape, b.shape[1]
    return kernel(F.pad(a, (0, -k % 8, 0, max(0, 17 - n))), F.pad(b, (0, -m % 8, 0, -k % 8)))[:n, :m]


class ByRow(nn.Embedding):
    """An embedding that holds integers and makes full numbers of the rows that are asked for, and of no others."""

    def __init__(self, embedding: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = self.max_norm = None
        self.weight = embedding.weight

    def forward(self, input: Tensor) -> Tensor:
        held: Any = self.weight
        groups = held.scale.shape[-1]
        return (held.qdata[input].unflatten(-1, (groups, -1)) * held.scale[input].unsqueeze(-1)).flatten(-2)


def plain(model: nn.Module) -> None:
    """Prepared layers as they were before, with the weights that they have now; in place."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "weight_fake_quantizer"):
            layer: Any = module
            replace(model, name, layer.to_embedding() if isinstance(module, nn.Embedding) else layer.to_linear())


def switch(model: nn.Module, on: bool) -> None:
    """Whether prepared layers round."""
    for module in model.modules():
        for which in ("weight_fake_quantizer", "activation_fake_quantizer"):
            if (quantizer := getattr(module, which, None)) is not None:
                quantizer.enabled = on


def nearest_divisor(width: int, group: int) -> int:
    """The divisor of `width` that is nearest to `group`, by their ratio; 1 is none."""
    divisors = [size for size in range(2, width + 1) if width % size == 0]
    return min(divisors, key=lambda size: abs(math.log(size / group)))


def check_available() -> None:
    """Raises UserError where this machine's products of eight-bit integers are missing, or overflow."""
    a = torch.full((32, 64), -128, dtype=torch.int8)
    b = torch.full((64, 32), 127, dtype=torch.int8)
    try:
        right = bool((product(a, b) == -128 * 127 * 64).all())
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"converter: int8 does not run on this machine ({reason}); take int8_int4 or int4") from error
    if not right:
        raise UserError("converter: int8 products overflow on this machine; take int8_int4 or int4")


def among(names: Collection[str]) -> Callable[[nn.Module, str], bool]:
    """torchao's filter for just these layers."""
    chosen = frozenset(names)
    return lambda module, name: name in chosen


def torchao() -> Any:
    return quietly("torchao.quantization")


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the module of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
