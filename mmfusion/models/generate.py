"""Text from a model: prompts in, pieces out, with a cache that changes the time and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from mmfusion.models.attention.rules import Places
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.types import IGNORE, Batch, Rows

COLDEST = 1e-6  # below it the likeliest piece is all but certain, and a float32 quotient may not be a number


def generate(model: MultimodalModel, batch: Batch, *, end: int, **how: Any) -> list[list[int]]:
    """The new pieces of each of the K documents, without `end`; see `stream`."""
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
) -> Iterator[Tensor]:
    """Continues each of the K documents of `batch.rows`, which hold prompts only, until the piece `end` or `max_new`.

    Gives the next piece [K] of all documents as soon as it is chosen; a document that has ended says `end` from there
    on. Prompts may have any lengths and share rows. Temperature 0 takes the likeliest piece; above it, pieces are drawn
    from the smallest set that holds `top_p` of the probability (nucleus sampling, Holtzman et al. 1904.09751), the same
    for the same seed, whatever other documents stand beside one. `banned` pieces are never said.
    """
    rows = one_document_a_row(batch.rows)
    tokens = model.encode({name: parts for name, parts in batch.streams.items() if name != "text"})
    x = model.fusion(tokens, rows, model.decoder.embedding)
    K, length = rows.ids.shape
    cache = model.decoder.cache(K, length + max_new)
    hidden = model.decoder(x, Places(rows.document, rows.position), cache)

    lengths = (rows.document >= 0).sum(dim=1)
    last = hidden[torch.arange(K, device=x.device), lengths - 1]
    document = torch.arange(K, device=x.device)[:, None]
    generator = torch.Generator().manual_seed(seed)
    open_ = torch.ones(K, dtype=torch.bool, device=x.device)
    for step in range(max_new):
        logits = (last @ model.decoder.unembedding.T).float()
        logits[:, list(banned)] = -torch.inf
        piece = choose(logits, temperature, top_p, torch.rand(1, generator=generator).to(logits).expand(K))
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
    probability, piece = (below / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probability.cumsum(dim=-1) - probability
    kept = probability * (before < top_p)  # the likeliest always stays: nothing stands before it
    reached = kept.cumsum(dim=-1)
    index = (reached <= dice[:, None] * reached[:, -1:]).sum(dim=-1)
    index = index.clamp(max=(kept > 0).sum(dim=-1) - 1)
    return piece.gather(1, index[:, None])[:, 0]


def one_document_a_row(rows: Rows) -> Rows:
    """The same documents, each in a row of its own, padded at the end.

    Raises ValueError for a document that no row holds: there is nothing to go on from.
    """
    K = len(rows.owner)
    where = [(rows.document == k).nonzero(as_tuple=True) for k in range(K)]
    if empty := [k for k in range(K) if not len(where[k][0])]:
        raise ValueError(f"documents {empty} of {K} have no pieces: a prompt has at least one")
    length = max((len(row) for row, _ in where), default=0)

    def spread(values: Tensor, padding: int) -> Tensor:
        spread_out = values.new_full((K, length), padding)
        for k, place in enumerate(where):
            spread_out[k, : len(place[0])] = values[place]
        return spread_out

    return Rows(
        ids=spread(rows.ids, 0),
        labels=spread(rows.labels, IGNORE),
        document=spread(rows.document, -1),
        position=spread(rows.position, 0),
        slot=spread(rows.slot, -1),
        answer=spread(rows.answer, -1),
        owner=rows.owner,
        of=rows.of,
        score=rows.score,
    )


def _until(pieces: list[int], end: int) -> list[int]:
    return pieces[: pieces.index(end)] if end in pieces else pieces
