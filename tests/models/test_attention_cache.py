"""The cache: pieces read in portions give what they give at once."""

import pytest
import torch

from mmfusion.models.attention.cache import Cache
from mmfusion.models.attention.rules import CausalWindow, Places
from mmfusion.models.layers import Transformer


def stack() -> Transformer:
    torch.manual_seed(0)
    rule = CausalWindow(window=3, sink=1)
    return Transformer(
        width=16, depth=2, heads=4, kv_heads=2, mlp_ratio=2.0, rule=rule, executor="sdpa", rope_base=100.0
    ).double()


def cache_for(transformer: Transformer, capacity: int) -> Cache:
    like = next(transformer.parameters())
    return Cache(depth=2, rows=2, kv_heads=2, capacity=capacity, head_width=transformer.head_width, like=like)


@pytest.mark.parametrize("portions", [[7], [1] * 7, [3, 4], [5, 1, 1]])
def test_in_portions_as_at_once(portions: list[int]):
    transformer = stack()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    # The first row is a document of seven; the second has a padded gap, as prompts of unequal length leave it.
    document = torch.tensor([[0] * 7, [1, 1, -1, -1, 1, 1, 1]])
    position = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 2, 3, 4]])
    whole = transformer(x, Places(document, position))
    cache = cache_for(transformer, capacity=9)
    pieces = zip(x.split(portions, 1), document.split(portions, 1), position.split(portions, 1), strict=True)
    parts = [transformer(x, Places(d, p), cache) for x, d, p in pieces]
    real = document >= 0
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], rtol=1e-10, atol=1e-12)


def test_a_full_cache_says_so():
    transformer = stack()
    cache = cache_for(transformer, capacity=4)
    places = Places(torch.zeros(2, 3, dtype=torch.int64), torch.arange(3).expand(2, -1))
    transformer(torch.randn(2, 3, 16, dtype=torch.float64), places, cache)
    with pytest.raises(ValueError, match="holds 4 pieces a row, 6 were asked for"):
        transformer(torch.randn(2, 3, 16, dtype=torch.float64), places, cache)
