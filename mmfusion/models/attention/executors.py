"""How a rule is computed. Every executor gives the same values and gradients; they differ in time and memory.

`plan` turns a rule into what the executor needs, once a forward pass; `attend` uses the plan in every layer. Shapes:
q[R, H, Q, d], k and v[R, G, K, d] with G key-value heads, each shared by H / G neighbouring query heads (Ainslie et
al. 2305.13245); the result is [R, H, Q, d]. A query that may see nothing gets zeros and passes no gradient.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.models.attention.rules import Places, Rule


class Executor(Protocol):
    """A way to compute attention under a rule."""

    def plan(self, rule: Rule, query: Places, key: Places) -> Any:
        """Whatever `attend` wants to know of the rule, for all layers."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Any) -> Tensor: ...


class Reference:
    """The equation written out, dense, in any floating type: what the others are measured against.

    softmax(q kᵀ / √d) v over the allowed keys (Vaswani et al. 1706.03762, equation 1); memory R·H·Q·K.
    """

    def plan(self, rule: Rule, query: Places, key: Places) -> Tensor:
        """allowed[R, 1, Q, K]."""
        return rule(query, key)[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("rhqd,rhkd->rhqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~plan, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1) * plan  # the factor empties the rows of queries that may see nothing
        return torch.einsum("rhqk,rhkd->rhqd", weights, v)


class Sdpa:
    """PyTorch's fused attention with a mask: the fast one for rows of up to a few thousand pieces.

    The mask stays boolean, so that it suits whatever type autocast gives q, k and v; PyTorch returns zeros for a query
    whose mask is empty.
    """

    def plan(self, rule: Rule, query: Places, key: Places) -> Tensor:
        """allowed[R, 1, Q, K]."""
        return rule(query, key)[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plan: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=plan, enable_gqa=q.shape[1] != k.shape[1])


ExecutorName = Literal["reference", "sdpa"]
EXECUTORS: dict[ExecutorName, Executor] = {"reference": Reference(), "sdpa": Sdpa()}
