"""Text from a model: prompts in, pieces out, with a cache that changes the time and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from mmfusion.models.attention.rules import Places
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.rows import one_document_a_row
from mmfusion.types import Batch

COLDEST = 1e-6  # below it the likeliest piece is all but certain, and a float32 quotient may not be a number


def generate(model: MultimodalModel, batch: Batch, *, end: int, **how: Any) -> list[list[int]]:
    """The new pieces of each answer to the K documents, without `end`; see `stream`."""
    said = list(stream(model, batch, end=end, **how)) if len(batch.rows.owner) else []
    return [_until(pieces, end) for pieces in torch.stack(said, dim=1).tolist()] if said else []


@torch.inference_mode()
def stream(
    model: MultimodalModel,
    batch: Batch,
    *,
    end: int,
    max_new: Annotated[int, Gt(0), Le(100_000)],
    temperature: Annotated[float, Ge(0), Le(1e4)] = 0.0,
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0,
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0,
    banned: Sequence[int] = (),
    samples: Annotated[int, Gt(0)] = 1,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Continues each of the K documents of `batch.rows`, which hold prompts only, until the piece `end` or `max_new`.

    Gives the next piece of all, [K · samples], as soon as it is chosen; what has ended says `end` from there on. Each
    document is read once for its `samples`, which stand side by side. Prompts may have any lengths and share rows.
    Temperature 0 takes the likeliest piece; above it, pieces are drawn from the smallest set that holds `top_p` of the
    probability (nucleus sampling, Holtzman et al. 1904.09751), the same for the same seed, whatever other documents
    stand beside one; `seeds` gives each document a seed of its own instead.
    `banned` pieces are never said.
    """
    rows = one_document_a_row(batch.rows)
    x = model.prompt(dataclasses.replace(batch, rows=rows))
    K, length = rows.ids.shape
    cache = model.decoder.cache(K, length + max_new)
    hidden = model.decoder(x, Places(rows.document, rows.position), cache)

    lengths = (rows.document >= 0).sum(dim=1)
    last = hidden[torch.arange(K, device=x.device), lengths - 1].repeat_interleave(samples, dim=0)
    cache.repeat(samples)
    lengths = lengths.repeat_interleave(samples)
    document = torch.arange(K, device=x.device).repeat_interleave(samples)[:, None]
    generators = [torch.Generator().manual_seed(own) for own in ([seed] if seeds is None else seeds)]
    open_ = torch.ones(K * samples, dtype=torch.bool, device=x.device)
    unembedding = model.decoder.unembedding  # made in full once, where the model holds integers
    for step in range(max_new):
        logits = (last @ unembedding.T).float()
        logits[:, list(banned)] = -torch.inf
        dice = torch.stack([torch.rand(samples, generator=one) for one in generators])
        piece = choose(logits, temperature, top_p, dice.to(logits).expand(K, samples).flatten())
        yield torch.where(open_, piece, end)
        open_ = open_ & (piece != end)
        if step == max_new - 1 or not open_.any():
            break
        x = model.decoder.embedding(piece[:, None])
        last = model.decoder(x, Places(document, (lengths + step)[:, None]), cache)[:, 0]


def choose(logits: Tensor, temperature: float, top_p: float, dice: Tensor) -> Tensor:
    """One piece [K] from logits[K, V]: the likeliest at temperature 0, else where dice[K] in [0, 1) falls."""
    if temperature < COLDEST:
        return logits.argmax(dim=-1)
    below = logits - logits.amax(dim=-1, keepdim=True)
    kept = (below / temperature).softmax(dim=-1)
    piece = None
    if top_p < 1:  # sorting a vocabulary takes longer than all else here
        probability, piece = kept.sort(dim=-1, descending=True, stable=True)
        before = probability.cumsum(dim=-1) - probability
        kept = probability * (before < top_p)  # the likeliest always stays: nothing stands before it
    reached = kept.cumsum(dim=-1)
    total = reached[:, -1:]
    at = torch.minimum(dice[:, None] * total, total.nextafter(total.new_zeros(1)))  # below the total, however rounded
    index = (reached <= at).sum(dim=-1, keepdim=True)
    return (index if piece is None else piece.gather(1, index))[:, 0]


def _until(pieces: list[int], end: int) -> list[int]:
    return pieces[: pieces.index(end)] if end in pieces else pieces
