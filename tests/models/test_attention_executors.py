"""The executors against each other and against the equation in plain loops."""

import math

import pytest
import torch
from torch import Tensor

from mmfusion.models.attention.executors import EXECUTORS
from mmfusion.models.attention.rules import Causal, CausalWindow, Document, Places, Rule, Sink, Window

RULES: list[Rule] = [
    Causal(),
    Document(),
    Causal() & Document(),
    Causal() & Document() & Window(3),
    CausalWindow(window=2, sink=2),
    Sink(1) | Window(1) & Causal(),
    Document() & Sink(0),  # nobody sees anything
    Causal() & Sink(2) & Window(2),  # later queries see nothing
]
PACKED = Places(
    torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1], [2, 3, 3, 3, 3, 3, -1, -1]]),
    torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4, 0, 0]]),
)


def inputs(heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    shapes = [(2, heads, 8, 4), (2, kv_heads, 8, 4), (2, kv_heads, 8, 4)]
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_sdpa_equals_reference_in_value_and_gradient(rule: Rule, heads: int, kv_heads: int):
    results = []
    for name in ("reference", "sdpa"):
        q, k, v = inputs(heads, kv_heads)
        executor = EXECUTORS[name]
        out = executor.attend(q, k, v, executor.plan(rule, PACKED, PACKED))
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for reference, fast in zip(*results, strict=True):
        assert reference.isfinite().all()
        torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES[:5], ids=str)
def test_reference_is_the_equation(rule: Rule):
    q, k, v = inputs(heads=4, kv_heads=2)
    executor = EXECUTORS["reference"]
    out = executor.attend(q, k, v, executor.plan(rule, PACKED, PACKED))
    allowed = rule(PACKED, PACKED)
    for r in range(2):
        for h in range(4):
            for i in range(8):
                seen = [j for j in range(8) if allowed[r, i, j]]
                scores = [math.exp((q[r, h, i] @ k[r, h // 2, j]).item() / 2) for j in seen]
                expected = sum(s * v[r, h // 2, j] for s, j in zip(scores, seen, strict=True)) / sum(scores)
                torch.testing.assert_close(out[r, h, i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_zeros(name: str, dtype: torch.dtype):
    q, k, v = inputs(2, 2, dtype)
    executor = EXECUTORS["sdpa" if name == "sdpa" else "reference"]
    out = executor.attend(q, k, v, executor.plan(Sink(0), PACKED, PACKED))
    assert out.dtype == dtype
    assert not out.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))
