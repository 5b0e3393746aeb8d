"""The equations of the objectives: pure functions of tensors, with their sources."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.types import IGNORE


def multi_positive_info_nce(logits: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """The loss of each anchor [P]; 0 for an anchor that has no positive.

        loss_i = -1/|P(i)| Σ_{p ∈ P(i)} log( exp(l_ip) / Σ_{a ∈ A(i)} exp(l_ia) )

    logits l[P, Q] are similarities over the temperature; P(i) are the columns where positive[P, Q], A(i) those where
    candidate[P, Q], positives among them. With one positive a row it is InfoNCE (van den Oord et al. 1807.03748) as
    CLIP has it (Radford et al. 2103.00020); with several, supervised contrastive learning with the sum outside the
    logarithm (Khosla et al. 2004.11362, equation 2), so that translations of one word are no negatives of each other.
    """
    logits = _at_least_float32(logits)
    log_probability = logits.masked_fill(~candidate, torch.finfo(logits.dtype).min).log_softmax(dim=-1)
    return -log_probability.masked_fill(~positive, 0).sum(dim=-1) / positive.sum(dim=-1).clamp(min=1)


def symmetric_contrastive_loss(
    x: Tensor,
    y: Tensor,
    *,
    scale: Tensor,
    positive: Tensor,
    x_valid: Tensor,
    y_valid: Tensor,
) -> tuple[Tensor, Tensor]:
    """`multi_positive_info_nce` of the anchors of both sides, [P] and [Q].

    x[P, E] and y[Q, E] of unit length; scale = 1 / temperature; positive[P, Q]; x_valid[P] and y_valid[Q] say what may
    stand among the candidates.
    """
    logits = scale * (x @ y.T)
    there = multi_positive_info_nce(logits, positive, y_valid.expand(len(x), -1))
    back = multi_positive_info_nce(logits.T, positive.T, x_valid.expand(len(y), -1))
    return there, back


def captioning_loss(hidden: Tensor, unembedding: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The next-piece cross-entropies of the n labels that are not IGNORE, [n], row by row.

        -log softmax(h_i Wᵀ)[y_i]

    hidden h[R, L, D], unembedding W[V, D], labels y[R, L] already shifted. `label_smoothing` ε mixes the target with
    the uniform distribution (Szegedy et al. 1512.00567, section 7). Logits are made at labelled places alone: in
    packed rows, most of which are tokens and prompts, all other places would cost a vocabulary's width for nothing.
    """
    labelled = labels != IGNORE
    logits = _at_least_float32(hidden[labelled] @ unembedding.T)
    return F.cross_entropy(logits, labels[labelled], reduction="none", label_smoothing=label_smoothing)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
