"""The autoregressive text stream."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from mmfusion.models.attention.cache import Cache
from mmfusion.models.attention.executors import ExecutorName
from mmfusion.models.attention.rules import Places, Rule
from mmfusion.models.layers import Transformer, weight_of


class Decoder(nn.Module):
    """A decoder-only transformer in Llama's manner (Touvron et al. 2302.13971): RMSNorm, rotary positions, grouped
    key-value heads, gated MLP; its attention is a mask rule. `tied` shares input and output embedding. Both start with
    deviation width^-1/2, so that logits start with variance one: at the usual 0.02 a small model spends its first
    hundreds of steps on the scale alone.
    """

    def __init__(
        self,
        *,
        vocab: Annotated[int, Gt(0)],
        width: Annotated[int, Gt(0)],
        depth: Annotated[int, Gt(0)],
        heads: Annotated[int, Gt(0)],
        kv_heads: Annotated[int, Gt(0)],
        rule: Rule,
        executor: ExecutorName = "sdpa",
        mlp_ratio: Annotated[float, Gt(0)] = 8 / 3,
        tied: bool = True,
        rope_base: Annotated[float, Gt(1)] = 10_000.0,
    ) -> None:
        super().__init__()
        self.vocab, self.width, self.depth = vocab, width, depth
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.head: nn.Linear | None = None
        if not tied:
            self.head = nn.Linear(width, vocab, bias=False)
            nn.init.normal_(self.head.weight, std=width**-0.5)
        self.transformer = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            mlp_ratio=mlp_ratio,
            rule=rule,
            executor=executor,
            rope_base=rope_base,
        )

    @property
    def unembedding(self) -> Tensor:
        """[V, D]: logits = hidden @ unembedding.T."""
        return weight_of(self.embedding if self.head is None else self.head)

    def forward(self, x: Tensor, places: Places, cache: Cache | None = None) -> Tensor:
        """x[R, L, D] at `places`[R, L] -> hidden[R, L, D]. A cache holds open documents, which have no answers yet."""
        return self.transformer(x, places, cache)

    def cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for `rows` rows of up to `capacity` pieces."""
        return Cache(
            depth=self.depth,
            rows=rows,
            kv_heads=self.transformer.kv_heads,
            capacity=capacity,
            head_width=self.transformer.head_width,
            like=self.transformer.norm.weight,
        )
