"""Encoders, heads, fusion and decoder as one model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmfusion.models.attention.rules import Places
from mmfusion.models.decoder import Decoder
from mmfusion.models.fusion.prefix import Prefix
from mmfusion.models.layers import blocks, recompute
from mmfusion.types import MODALITIES, Batch, Modality, Outputs, Patches, Tokens


class MultimodalModel(nn.Module):
    """What a Batch goes through. Any subset of the modalities may be in it; see contract 2: absent is a dummy part.

    `encoders` and `heads` are named by modality. An encoder has `modality`, `width` and `merge`; all but the text
    encoder's tokens are the decoder's to read, with the embedding of their part where the fusion wants it. A modality
    without a head has no embedding. Raises ValueError, with both numbers, where the pieces do not fit.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[Modality, nn.Module],
        heads: Mapping[Modality, nn.Module],
        fusion: Prefix,
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.modalities: tuple[Modality, ...] = tuple(name for name in MODALITIES if name in encoders)
        self.encoders = nn.ModuleDict({name: encoders[name] for name in self.modalities})
        self.heads = nn.ModuleDict({name: heads[name] for name in self.modalities if name in heads})
        self.fusion, self.decoder = fusion, decoder
        _check_fit(encoders, heads, fusion, decoder)

    def encode(self, streams: Mapping[Modality, Patches]) -> dict[Modality, Tokens]:
        """Tokens of each stream, in the order of MODALITIES."""
        return {name: self.encoders[name](streams[name]) for name in self.modalities if name in streams}

    def embed(self, streams: Mapping[Modality, Patches]) -> dict[Modality, Tensor]:
        """embeddings[P, E] of unit norm of each stream that has a head."""
        return self._project(self.encode({name: parts for name, parts in streams.items() if name in self.heads}))

    def freeze(self, modality: Modality) -> None:
        """Leave one encoder and its head as they are: no gradient, no optimizer state."""
        for part in (self.encoders, self.heads):
            if modality in part:
                part[modality].requires_grad_(False)

    def blocks(self) -> list[nn.Module]:
        """The repeated layers in order, encoders' first: what is sharded, compiled and recomputed one by one."""
        return blocks(self)

    def checkpoint_activations(self) -> None:
        """Recompute every block in backward instead of keeping what is inside: less memory, a forward's time more."""
        for block in self.blocks():
            recompute(block)

    def forward(self, batch: Batch) -> Outputs:
        """Everything that objectives read."""
        tokens, rows = self.encode(batch.streams), batch.rows
        embeddings = self._project(tokens)
        x = self.fusion(tokens, embeddings, rows, self.decoder.embedding)
        hidden = self.decoder(x, Places(rows.document, rows.position, rows.answer))
        return Outputs(tokens, embeddings, hidden, self.decoder.unembedding)

    def prompt(self, batch: Batch) -> Tensor:
        """x[R, L, D]: what the decoder reads of a batch."""
        tokens = self.encode({name: parts for name, parts in batch.streams.items() if name != "text"})
        return self.fusion(tokens, self._project(tokens), batch.rows, self.decoder.embedding)

    def _project(self, tokens: Mapping[Modality, Tokens]) -> dict[Modality, Tensor]:
        return {name: self.heads[name](tokens[name]) for name in tokens if name in self.heads}


def _check_fit(
    encoders: Mapping[Modality, nn.Module], heads: Mapping[Modality, nn.Module], fusion: Prefix, decoder: Decoder
) -> None:
    for name, encoder in encoders.items():
        if lacking := [wanted for wanted in ("modality", "width", "merge") if not hasattr(encoder, wanted)]:
            raise ValueError(f"encoders.{name}: {type(encoder).__name__} has no {lacking[0]}; see models/encoders")
        if encoder.modality != name:
            raise ValueError(f"encoders.{name} is an encoder of {encoder.modality}")
        if name in heads and heads[name].width != encoder.width:
            raise ValueError(f"heads.{name} has width {heads[name].width}, encoders.{name} gives {encoder.width}")
    if stray := [name for name in heads if name not in encoders]:
        raise ValueError(f"heads without an encoder: {stray}; encoders: {list(encoders)}")
    if len({head.out for head in heads.values()}) > 1:
        raise ValueError(f"heads must share one space, got {[(name, head.out) for name, head in heads.items()]}")
    read = {name: encoder.width for name, encoder in encoders.items() if name != "text"}
    if fusion.widths != read:
        raise ValueError(f"fusion.widths is {fusion.widths}, the encoders give {read}")
    spaces = {head.out for name, head in heads.items() if name != "text"}
    if fusion.embedded and spaces - {fusion.embedded}:
        raise ValueError(f"fusion.embedded is {fusion.embedded}, the heads' space has {spaces.pop()}")
    if fusion.width != decoder.width:
        raise ValueError(f"fusion.width is {fusion.width}, decoder.width is {decoder.width}")
