"""Prefix fusion: the encoders' tokens take the places of placeholder pieces in the decoder's rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from mmfusion.types import MODALITIES, Modality, Rows, Tokens


class Prefix(nn.Module):
    """One linear map a modality into the decoder's width, as LLaVA does it (Liu et al. 2304.08485).

    `widths` names the modalities that the decoder may read, and the width of their tokens. With `embedded`, the width
    of the space that modalities are aligned in, every token also carries its part's embedding, by one map for all of
    them, as ClipCap gives a decoder nothing else (Mokady et al. 2111.09734): tokens tell details, and what was aligned
    with words tells what the whole is, in drawings of another hand too. No gradient goes back through it: alignment is
    left to the objectives that are about it.
    """

    def __init__(
        self,
        *,
        widths: Mapping[Modality, Annotated[int, Gt(0)]],
        width: Annotated[int, Gt(0)],
        embedded: Annotated[int, Gt(0)] | None = None,
    ) -> None:
        super().__init__()
        self.widths, self.width, self.embedded = dict(widths), width, embedded
        self.projections = nn.ModuleDict({name: nn.Linear(size, width) for name, size in widths.items()})
        self.whole = nn.Linear(embedded, width, bias=False) if embedded else None

    def forward(
        self,
        tokens: Mapping[Modality, Tokens],
        embeddings: Mapping[Modality, Tensor],
        rows: Rows,
        embedding: nn.Embedding,
    ) -> Tensor:
        """x[R, L, D]: the pieces' embeddings, and where `rows.slot` says so, the token of that number.

        `embeddings` are those of the parts, [P, E] of unit length; a modality may have none.

        Tokens are numbered as in `Rows`: valid ones only, modalities in the order of MODALITIES without text. Raises
        ValueError where slots and tokens disagree: a number that no token has, or a token of another sample.
        """
        x = embedding(rows.ids)
        named: list[Modality] = [name for name in MODALITIES if name != "text" and name in tokens]
        if unread := [name for name in named if name not in self.projections]:
            raise ValueError(f"the fusion has no projection for {unread}, only for {list(self.projections)}")
        filled = rows.slot >= 0
        slot = rows.slot[filled]
        owner = [tokens[name].owner[:, None].expand_as(tokens[name].valid)[tokens[name].valid] for name in named]
        _check_alignment(slot, rows.document[filled], rows.owner, torch.cat([*owner, rows.owner[:0]]))
        if not named:
            return x
        projected = [self._projected(name, tokens[name], embeddings.get(name)) for name in named]
        return x.index_put((filled,), torch.cat(projected)[slot].to(x.dtype))

    def _projected(self, name: Modality, tokens: Tokens, part: Tensor | None) -> Tensor:
        """The valid tokens of a modality in the decoder's width."""
        x = self.projections[name](tokens.x)
        if self.whole is not None and part is not None:
            x = x + self.whole(part.detach() * math.sqrt(part.shape[-1]))[:, None]  # entries of about 1
        return x[tokens.valid]


def _check_alignment(slot: Tensor, document: Tensor, document_owner: Tensor, token_owner: Tensor) -> None:
    """slot and document[S] of the filled places, document_owner[K], token_owner of all valid tokens."""
    if not len(slot):
        return
    highest, count = int(slot.max()), len(token_owner)
    if highest >= count:
        raise ValueError(
            f"the rows ask for token {highest} of {count}: the encoders gave fewer tokens than the batch was packed "
            "for; the `merge` in data.pipeline.patchify differs from the encoder's"
        )
    wanted, given = document_owner[document], token_owner[slot]
    wrong = (wanted != given).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{len(wrong)} of {len(slot)} slots hold a token of another sample: slot {int(slot[first])} stands in a "
            f"document of sample {int(wanted[first])}, its token belongs to sample {int(given[first])}; the `merge` "
            "in data.pipeline.patchify differs from the encoder's"
        )
