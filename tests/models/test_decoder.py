"""The decoder against its equations in plain loops, and what may change what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmfusion.models.attention.executors import ExecutorName
from mmfusion.models.attention.rules import CausalWindow, Places
from mmfusion.models.decoder import Decoder
from mmfusion.models.layers import EPSILON

DOCUMENT = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, -1, -1]])
POSITION = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])


def decoder(executor: ExecutorName = "sdpa", tied: bool = True) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(
        vocab=11,
        width=12,
        depth=2,
        heads=6,
        kv_heads=2,
        rule=CausalWindow(window=2, sink=1),
        executor=executor,
        mlp_ratio=2.0,
        tied=tied,
        rope_base=50.0,
    )
    for name, weight in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)  # the ones that norms start with would hide a forgotten one
    return made.double()


def rms_norm(x: list[float], weight: Tensor) -> list[float]:
    size = math.sqrt(sum(v * v for v in x) / len(x) + EPSILON)
    return [v / size * w for v, w in zip(x, weight.tolist(), strict=True)]


def linear(x: list[float], weight: Tensor) -> list[float]:
    return [sum(a * b for a, b in zip(row, x, strict=True)) for row in weight.tolist()]


def turned(x: list[float], position: int, base: float) -> list[float]:
    half = len(x) // 2
    angle = [position * base ** (-2 * i / len(x)) for i in range(half)]
    first = [x[i] * math.cos(angle[i]) - x[i + half] * math.sin(angle[i]) for i in range(half)]
    return first + [x[i + half] * math.cos(angle[i]) + x[i] * math.sin(angle[i]) for i in range(half)]


def by_hand(model: Decoder, x: Tensor) -> list[list[float]]:
    """One document, piece by piece: heads of 2 numbers, query heads 0-2 on key head 0, 3-5 on key head 1."""
    weights = dict(model.named_parameters())
    state = x.tolist()
    for layer in range(2):
        w = {n.removeprefix(f"transformer.blocks.{layer}."): p for n, p in weights.items()}
        normed = [rms_norm(s, w["attention_norm.weight"]) for s in state]
        qkv = [linear(s, w["attention.qkv.weight"]) for s in normed]
        heads = [[row[2 * h : 2 * h + 2] for h in range(10)] for row in qkv]
        for i in range(len(state)):
            mixed: list[float] = []
            for h in range(6):
                seen = [j for j in range(i + 1) if i - j < 2 or j < 1]
                query = turned(heads[i][h], i, 50.0)
                keys = [turned(heads[j][6 + h // 3], j, 50.0) for j in seen]
                scores = [math.exp((query[0] * k[0] + query[1] * k[1]) / math.sqrt(2)) for k in keys]
                for part in range(2):
                    values = [heads[j][8 + h // 3][part] for j in seen]
                    mixed.append(sum(s * v for s, v in zip(scores, values, strict=True)) / sum(scores))
            state[i] = [a + b for a, b in zip(state[i], linear(mixed, w["attention.out.weight"]), strict=True)]
        for i in range(len(state)):
            both = linear(rms_norm(state[i], w["mlp_norm.weight"]), w["mlp.gate_and_up.weight"])
            half = len(both) // 2
            hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(both[:half], both[half:], strict=True)]
            state[i] = [a + b for a, b in zip(state[i], linear(hidden, w["mlp.out.weight"]), strict=True)]
    return [rms_norm(s, weights["transformer.norm.weight"]) for s in state]


@pytest.mark.parametrize("executor", ["reference", "sdpa"])
def test_the_decoder_is_its_equations(executor: ExecutorName):
    model = decoder(executor)
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    got = model(x, Places(DOCUMENT[:, :5], POSITION[:, :5]))
    torch.testing.assert_close(got[0], torch.tensor(by_hand(model, x[0]), dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_what_each_piece_depends_on():
    """d hidden[i] / d x[j] is not zero exactly where two layers of the rule lead from j to i."""
    model = decoder()
    x = torch.randn(1, 10, 12, dtype=torch.float64, requires_grad=True)
    hidden = model(x, Places(DOCUMENT, POSITION))
    places = Places(DOCUMENT, POSITION)
    allowed = CausalWindow(window=2, sink=1)(places, places)[0].double()
    reach = (allowed @ allowed) > 0
    for i in range(10):
        (gradient,) = torch.autograd.grad(hidden[0, i].sum(), x, retain_graph=True)
        assert (gradient[0].abs().sum(dim=-1) > 0).tolist() == reach[i].tolist(), i


def test_a_later_piece_or_another_document_changes_no_earlier_logit():
    model = decoder()
    ids = torch.randint(0, 11, (1, 10))
    before = model(model.embedding(ids), Places(DOCUMENT, POSITION)) @ model.unembedding.T
    for changed in range(10):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        after = model(model.embedding(other), Places(DOCUMENT, POSITION)) @ model.unembedding.T
        same = (DOCUMENT[0] != DOCUMENT[0, changed]) | (torch.arange(10) < changed)
        same &= DOCUMENT[0] >= 0  # what padding says, nobody reads
        assert torch.equal(after[0, same], before[0, same]), changed
        assert not torch.equal(after[0, changed], before[0, changed])


def test_packed_as_alone():
    model = decoder()
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    packed = model(x, Places(DOCUMENT, POSITION))
    alone = model(x[:, 5:8], Places(torch.zeros(1, 3, dtype=torch.int64), torch.arange(3)[None]))
    torch.testing.assert_close(packed[:, 5:8], alone, rtol=1e-10, atol=1e-12)


def test_each_of_several_answers_is_as_alone():
    """A prompt of four pieces and answers of three and two to it, in one row."""
    model = decoder()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    position, answer = [0, 1, 2, 3, 4, 5, 6, 4, 5], [-1] * 4 + [0] * 3 + [1] * 2
    together = model(x, Places(torch.zeros(1, 9, dtype=torch.int64), torch.tensor([position]), torch.tensor([answer])))
    for places in ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8]):
        zero = torch.zeros(1, len(places), dtype=torch.int64)
        alone = model(x[:, places], Places(zero, torch.arange(len(places))[None]))
        torch.testing.assert_close(together[:, places], alone, rtol=1e-10, atol=1e-12)


def test_executors_agree_through_the_whole_decoder():
    gradients = []
    for executor in ("reference", "sdpa"):
        model = decoder("reference" if executor == "reference" else "sdpa")
        ids = torch.arange(10)[None] % 11
        model(model.embedding(ids), Places(DOCUMENT, POSITION)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for reference, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-8, atol=1e-10)


def test_untied_embeddings_are_two():
    tied, untied = decoder(tied=True), decoder(tied=False)
    assert tied.unembedding is tied.embedding.weight
    assert untied.unembedding is not untied.embedding.weight
    assert untied.unembedding.shape == (11, 12)
