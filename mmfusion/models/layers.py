"""What encoders and decoder are built from: rotary positions, attention, gated MLP, the transformer stack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmfusion.models.attention.cache import Cache, LayerCache
from mmfusion.models.attention.executors import EXECUTORS, Executor, ExecutorName
from mmfusion.models.attention.rules import Document, Places, Rule

EPSILON = 1e-6


def rotary_angles(position: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin[R, 1, L, d/2] of position · base^(-2i/d), for `rotate` (Su et al. 2104.09864, section 3.2.2)."""
    frequency = base ** (-torch.arange(0, head_width, 2, device=position.device, dtype=torch.float32) / head_width)
    angle = position[:, None, :, None].float() * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (x[i], x[i + d/2]) of x[R, H, L, d] by its angle."""
    cos, sin = (part.to(x.dtype) for part in angles)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Self-attention with grouped key-value heads; the executor decides how it is computed."""

    def __init__(self, width: int, heads: int, kv_heads: int, executor: Executor) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width} must divide by heads {heads}, and heads by kv_heads {kv_heads}")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.executor = executor
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, plan: object, angles: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> Tensor:
        """x[R, L, D] -> [R, L, D]; `plan` is the executor's, over the cached keys too where there is a cache."""
        R, L, D = x.shape
        heads = self.qkv(x).view(R, L, self.heads + 2 * self.kv_heads, self.head_width).transpose(1, 2)
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if angles is not None:
            qk = rotate(qk, angles)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.out(self.executor.attend(q, k, v, plan).transpose(1, 2).reshape(R, L, D))


class GatedMLP(nn.Module):
    """out(silu(a) · b) with a and b linear in x (SwiGLU, Shazeer 2002.05202, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norms are RMSNorm (Zhang & Sennrich 1910.07467)."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int, executor: Executor) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=EPSILON)
        self.attention = Attention(width, heads, kv_heads, executor)
        self.mlp_norm = nn.RMSNorm(width, eps=EPSILON)
        self.mlp = GatedMLP(width, hidden)

    def forward(
        self, x: Tensor, plan: object, angles: tuple[Tensor, Tensor] | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), plan, angles, cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Blocks under one rule, and a last norm; without a rule, everything in a document sees all of it.

    `mlp_ratio` is the hidden width of the gated MLP over the width, rounded to a multiple of 8. `rope_base` None means
    that positions are somebody else's business. Weights start normal with deviation fan_in^-1/2, those that write to
    the residual stream smaller by (2·depth)^1/2, so that its variance does not grow with the depth (GPT-2).
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        kv_heads: int | None = None,
        rule: Rule | None = None,
        executor: ExecutorName = "sdpa",
        rope_base: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        self.rule, self.executor, self.rope_base = rule or Document(), EXECUTORS[executor], rope_base
        self.kv_heads, self.head_width = kv_heads, width // heads
        if rope_base is not None and self.head_width % 2:
            raise ValueError(f"rotary positions want an even head width, got {width} / {heads} = {self.head_width}")
        hidden = 8 * max(1, round(width * mlp_ratio / 8))
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden, self.executor) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2:
                shrink = (2 * depth) ** -0.5 if name.endswith("out.weight") else 1.0
                nn.init.normal_(weight, std=shrink * weight.shape[1] ** -0.5)

    def forward(self, x: Tensor, places: Places, cache: Cache | None = None) -> Tensor:
        """x[R, L, D] at `places`[R, L] -> [R, L, D]; with a cache, x continues what the cache holds."""
        keys = places if cache is None else cache.extend(places)
        plan = self.executor.plan(self.rule, places, keys)
        angles = None
        if self.rope_base is not None:
            angles = rotary_angles(places.position, self.head_width, self.rope_base)
        for index, block in enumerate(self.blocks):
            x = block(x, plan, angles, None if cache is None else cache.layers[index])
        return self.norm(x)


class CoordinateEncoding(nn.Module):
    """Coordinates as sines and cosines of a ladder of wavelengths, mapped to the width (Tancik et al. 2006.10739).

    `wavelengths` gives for each axis that is read (an index into the last axis of `coords`) the shortest and the
    longest, in that axis's unit; `bands` wavelengths stand between them, each longer by the same factor.
    """

    def __init__(self, width: int, wavelengths: Mapping[int, tuple[float, float]], bands: int = 8) -> None:
        super().__init__()
        self.axes = list(wavelengths)
        ladders = [
            torch.logspace(math.log10(short), math.log10(long), bands, dtype=torch.float64)
            for short, long in wavelengths.values()
        ]
        frequency = (2 * torch.pi / torch.stack(ladders)).float()  # [axes, bands]
        self.register_buffer("frequency", frequency, persistent=False)
        self.project = nn.Linear(2 * frequency.numel(), width)
        nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, coords: Tensor) -> Tensor:
        """coords[..., axes] -> [..., D]."""
        frequency: Tensor = self.get_buffer("frequency")
        phase = (coords[..., self.axes, None] * frequency).flatten(-2)
        return self.project(torch.cat([phase.sin(), phase.cos()], dim=-1))


class Merge(nn.Module):
    """Each `merge` consecutive patches become one token by one linear map of all of them; 1 leaves them as they are."""

    def __init__(self, width: int, merge: int) -> None:
        super().__init__()
        self.merge = merge
        self.project = nn.Identity()
        if merge > 1:
            self.project = nn.Linear(merge * width, width)
            nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5)
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, coords: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x[P, N, D], coords[P, N, 4], valid[P, N] -> the same of M = ⌈N / merge⌉ tokens.

        What is not valid counts as zeros. A token stands at the mean of its valid patches and is valid with one of
        them.
        """
        if self.merge == 1:
            return x, coords, valid
        P, N, D = x.shape
        missing = -N % self.merge
        x = F.pad(x * valid[..., None], (0, 0, 0, missing)).reshape(P, -1, self.merge * D)
        share = F.pad(valid, (0, missing)).view(P, -1, self.merge, 1).to(coords.dtype)
        coords = F.pad(coords, (0, 0, 0, missing)).view(P, -1, self.merge, 4)
        total = share.sum(dim=2)
        return self.project(x), (coords * share).sum(dim=2) / total.clamp(min=1), total[..., 0] > 0


def weight_of(layer: nn.Module) -> Tensor:
    """The weight that a layer works with, in full, whatever a converter made of the one that it holds."""
    weight: Tensor = layer.get_parameter("weight")
    if (rounded := getattr(layer, "weight_fake_quantizer", None)) is not None:
        return rounded(weight)
    return weight.dequantize() if hasattr(weight, "qdata") else weight


def one_part_a_row(valid: Tensor, position: Tensor | None = None) -> Places:
    """Places[P, N] for encoders: a part's valid patches are one document, its padding is another."""
    document = torch.where(valid, 0, -1)
    return Places(document, torch.zeros_like(document) if position is None else position)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated layers below `module`, in order: what any module keeps as `blocks`, as timm's models do too."""
    return [block for inner in module.modules() for name, many in inner.named_children() if name == "blocks"
            for block in many.children()]  # fmt: skip


def recompute(block: nn.Module) -> None:
    """Keep no activations of a block for backward but its inputs; it runs once more there (Chen et al. 1604.06174).

    Its forward is replaced, not wrapped in a module, so that names of weights stay; call it once.
    """
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
