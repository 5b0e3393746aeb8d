"""Batches and outputs made by hand, without a model, for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfusion.types import Batch, Modality, Outputs, Patches, Rows, Tokens

SPACE = 6


def batch(owners: Mapping[Modality, Sequence[int]], concept: Sequence[int], labels: Tensor | None = None) -> Batch:
    """Parts by the samples that own them; labels are one document of the first sample, without them a row is empty."""
    documents = torch.zeros(0 if labels is None else 1, dtype=torch.int64)
    streams: dict[Modality, Patches] = {name: patches(owner) for name, owner in owners.items()}
    labels = torch.full((1, 2), -100) if labels is None else labels
    zero = torch.zeros_like(labels)
    document = zero - 1 + len(documents)
    return Batch(
        streams=streams,
        rows=Rows(zero, labels, document, zero, zero - 1, document, documents, documents, documents.float()),
        keys=tuple(map(str, concept)),
        concept=torch.tensor(concept, dtype=torch.int64),
        seeds=torch.arange(len(concept)),
    )


def patches(owner: Sequence[int]) -> Patches:
    P = len(owner)
    return Patches(torch.zeros(P, 1, 1), torch.zeros(P, 1, 4), torch.ones(P, 1, dtype=torch.bool), torch.tensor(owner))


def outputs(made: Batch, seed: int = 0) -> Outputs:
    """Random embeddings of unit length, random hidden states."""
    generator = torch.Generator().manual_seed(seed)
    tokens: dict[Modality, Tokens] = {}
    embeddings: dict[Modality, Tensor] = {}
    for name, parts in made.streams.items():
        tokens[name] = Tokens(parts.values, parts.coords, parts.valid, parts.owner)
        drawn = torch.randn(len(parts.owner), SPACE, generator=generator)
        embeddings[name] = F.normalize(drawn, dim=-1).requires_grad_()
    hidden = torch.randn(*made.rows.ids.shape, 4, generator=generator, requires_grad=True)
    return Outputs(tokens, embeddings, hidden, torch.randn(9, 4, generator=generator, requires_grad=True))
