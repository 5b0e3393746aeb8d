"""The equations of the objectives: pure functions of tensors, with their sources."""

from __future__ import annotations

from collections.abc import Sequence

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


def contrastive_loss(x: Tensor, y: Tensor, *, scale: Tensor, positive: Tensor, candidate: Tensor) -> Tensor:
    """`multi_positive_info_nce` of the anchors x among y, [P].

    x[P, E] and y[Q, E] of unit length; scale = 1 / temperature; positive[P, Q]; candidate[Q] says what of y may stand
    among the candidates.
    """
    return multi_positive_info_nce(scale * (x @ y.T), positive, candidate.expand(len(x), -1))


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


def log_probability(
    hidden: Tensor, unembedding: Tensor, *, temperature: float = 1.0, banned: Sequence[int] = ()
) -> Tensor:
    """log softmax(h Wᵀ / T) of hidden h[n, D] and unembedding W[V, D], [n, V]: each piece that may come next, in nats.

    With a `temperature` T, and -inf for `banned` pieces, it is the distribution that `models.generate` draws from.
    """
    logits = _at_least_float32(hidden @ unembedding.T) / temperature
    never = torch.tensor(banned, dtype=torch.int64, device=logits.device)
    return logits.index_fill(1, never, -torch.inf).log_softmax(dim=-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) [n] in nats of log-probabilities p, q[n, V]."""
    return torch.linalg.vecdot(p.exp(), p - q)


# Losses of pairs. policy, reference and length [n, 2] are the log-probabilities that the model and the reference give
# two answers to one prompt, and their pieces; the chosen answer stands first. All give [n].


def dpo(
    policy: Tensor,
    reference: Tensor,
    length: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    per_piece: bool = False,
    anchor: float = 0.0,
) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2305.18290, equation 7).

        h = β (log π(c)/π_ref(c) - log π(r)/π_ref(r)),   loss = -(1-ε) log sigmoid(h) - ε log sigmoid(-h)

    `label_smoothing` ε is the share of pairs that are thought to be the wrong way round (cDPO; Mitchell 2023, "A note
    on DPO with noisy preferences"). `per_piece` divides each answer's log-ratio by its length, so that longer answers
    gain nothing by it (Meng et al. 2405.14734, section 2; Lambert et al. 2411.15124, section 5). `anchor` a adds
    -a log π(c) / |c|: without it the chosen answers may become unlikely too, only less so than the others (Pang et al.
    2404.19733, equation 2).
    """
    likelihood = anchor * -policy[:, 0] / length[:, 0]
    ratio = policy - reference
    if per_piece:
        ratio = ratio / length
    h = beta * (ratio[:, 0] - ratio[:, 1])
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h) + likelihood


def ipo(policy: Tensor, reference: Tensor, length: Tensor, *, beta: float = 0.1) -> Tensor:
    """Identity preference optimization (Azar et al. 2310.12036, equation 17) of log-ratios per piece.

    (log π(c)/π_ref(c) / |c| - log π(r)/π_ref(r) / |r| - 1/(2β))²
    """
    ratio = (policy - reference) / length
    return (ratio[:, 0] - ratio[:, 1] - 1 / (2 * beta)) ** 2


def simpo(policy: Tensor, reference: Tensor, length: Tensor, *, beta: float = 2.0, margin: float = 1.0) -> Tensor:
    """Preference optimization without a reference (Meng et al. 2405.14734, equation 6).

    -log sigmoid(β (log π(c) / |c| - log π(r) / |r|) - m), m the `margin`.
    """
    per_piece = policy / length
    return -F.logsigmoid(beta * (per_piece[:, 0] - per_piece[:, 1]) - margin)


def bradley_terry(rewards: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_c - r_r - m) of rewards[n, 2], the chosen answer's first: a reward model's loss.

    Bradley and Terry 1952, as Ouyang et al. 2203.02155, equation 1, have it; the margin m as Touvron et al. 2307.09288,
    equation 2.
    """
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1] - margin)


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    divergence: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization of single answers [n] that are desirable or not (Ethayarajh et al. 2402.01306).

        λ_D (1 - sigmoid(β (r - z)))  of a desirable one,   λ_U (1 - sigmoid(β (z - r)))  of another,   r = log π/π_ref

    Equation 8 there. `divergence` z is the policy's from the reference, at least 0, which no gradient goes through.
    """
    gain = beta * (policy - reference - divergence.detach().clamp(min=0))
    loss = torch.where(desirable, 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain))
    return torch.where(desirable, desirable_weight * loss, undesirable_weight * loss)


# Policy gradients.


def group_advantage(rewards: Tensor, *, scaled: bool = True) -> Tensor:
    """Each answer's reward above the mean of its group's; rewards[n, G] of G answers to each of n prompts.

    GRPO divides by the group's standard deviation (Shao et al. 2402.03300, section 4.1.2); unscaled, prompts whose
    answers are nearly all right or all wrong have no more weight than others (Dr. GRPO, Liu et al. 2503.20783).
    """
    above = rewards - rewards.mean(dim=1, keepdim=True)
    return above / (rewards.std(dim=1, keepdim=True) + 1e-4) if scaled else above


def clipped_policy_loss(
    policy: Tensor, behaviour: Tensor, advantage: Tensor, *, low: float = 0.2, high: float = 0.2
) -> Tensor:
    """-min(q A, clip(q, 1 - low, 1 + high) A), q = π/π_behaviour, of each piece; the two in log-probabilities.

    PPO's (Schulman et al. 1707.06347, equation 7); `high` above `low` leaves unlikely pieces room to grow (clip-higher,
    Yu et al. 2503.14476, section 3.1).
    """
    ratio = (policy - behaviour).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def reverse_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(π ‖ π_ref) from each piece that π drew: π_ref/π - log π_ref/π - 1, unbiased and never negative.

    "k3" in Schulman 2020, "Approximating KL divergence"; equation 4 in Shao et al. 2402.03300.
    """
    log_ratio = reference - policy
    return log_ratio.exp() - log_ratio - 1


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
