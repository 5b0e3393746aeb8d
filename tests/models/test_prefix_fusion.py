"""Prefix fusion: slots are filled as numbered, and a disagreement stops with its numbers."""

import dataclasses

import pytest
import torch
from tiny_multimodal import PLACEHOLDER, pack
from torch import nn

from mmfusion.models.fusion.prefix import Prefix
from mmfusion.types import Modality, Rows, Tokens


def parts(values: list[list[float]], valid: list[list[bool]], owner: list[int]) -> Tokens:
    x = torch.tensor(values)[..., None]
    return Tokens(x, torch.zeros(*x.shape[:2], 4), torch.tensor(valid), torch.tensor(owner))


def case() -> tuple[Prefix, dict[Modality, Tokens], Rows, nn.Embedding]:
    """Tokens count in the order of MODALITIES: pictures 1, 2, 3 are numbers 0, 1, 2; the sound 50 is number 3."""
    fusion = Prefix(widths={"audio": 1, "image": 1}, width=1)
    embedding = nn.Embedding(10, 1)
    with torch.no_grad():
        for name, factor in (("image", 100.0), ("audio", -1.0)):
            layer = fusion.projections[name]
            assert isinstance(layer, nn.Linear)
            layer.weight.fill_(factor)
            layer.bias.zero_()
        embedding.weight.copy_(torch.arange(10.0)[:, None])
    tokens: dict[Modality, Tokens] = {
        "audio": parts([[50.0]], [[True]], [1]),
        "image": parts([[1.0, 2.0], [3.0, 4.0]], [[True, True], [True, False]], [0, 1]),
    }
    rows = pack([(0, [0, 1], [5, 6]), (1, [2, 3], [7]), (0, [1], [8])], length=8)
    return fusion, tokens, rows, embedding


def test_slots_by_hand():
    fusion, tokens, rows, embedding = case()
    x = fusion(tokens, {}, rows, embedding)[..., 0]
    assert x[0].tolist() == [100, 200, 5, 6, 300, -50, 7, 0]
    assert x[1].tolist() == [200, 8, 0, 0, 0, 0, 0, 0]


def test_every_token_carries_its_parts_embedding():
    fusion, tokens, rows, embedding = case()
    plain = fusion(tokens, {}, rows, embedding)[..., 0]
    fusion.whole = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        fusion.whole.weight.copy_(torch.tensor([[1.0, 0.5, 0.0, 0.0]]))
    parts_embeddings = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], requires_grad=True)
    x = fusion(tokens, {"image": parts_embeddings}, rows, embedding)[..., 0]
    assert (x - plain)[0].tolist() == [2, 2, 0, 0, 1, 0, 0, 0]  # times sqrt(4); the sound has none
    assert (x - plain)[1].tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
    x.sum().backward()
    assert fusion.whole.weight.grad is not None
    assert parts_embeddings.grad is None  # alignment is left to others


def test_gradients_reach_what_fills_a_slot_and_are_zero_elsewhere():
    fusion, tokens, rows, embedding = case()
    without = dataclasses.replace(rows, slot=torch.where(rows.slot == 3, -1, rows.slot))
    fusion(tokens, {}, without, embedding).sum().backward()
    layers = {name: layer for name, layer in fusion.projections.items() if isinstance(layer, nn.Linear)}
    assert layers["image"].weight.grad is not None
    assert layers["image"].weight.grad.item() == 1 + 2 + 2 + 3
    assert layers["audio"].weight.grad is not None
    assert layers["audio"].weight.grad.item() == 0
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[PLACEHOLDER].item() == 1  # the slot that was emptied


def test_too_few_tokens():
    fusion, tokens, rows, embedding = case()
    with pytest.raises(ValueError, match=r"ask for token 3 of 3: .*merge"):
        fusion({"image": tokens["image"]}, {}, rows, embedding)


def test_tokens_of_another_sample():
    fusion, tokens, rows, embedding = case()
    tokens["image"] = dataclasses.replace(tokens["image"], valid=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="1 of 5 slots hold a token of another sample") as caught:
        fusion(tokens, {}, pack([(0, [0, 1, 2], [5]), (1, [2, 3], [7])], length=5), embedding)
    assert "slot 2 stands in a document of sample 0, its token belongs to sample 1" in str(caught.value)
    assert rows.slot.max() == 3


def test_a_modality_without_projection():
    fusion, tokens, rows, embedding = case()
    with pytest.raises(ValueError, match=r"no projection for \['sensor'\]"):
        fusion({**tokens, "sensor": tokens["audio"]}, {}, rows, embedding)


def test_text_alone():
    fusion, _, _, embedding = case()
    assert fusion({}, {}, pack([(0, [], [5, 6])], length=2), embedding)[..., 0].tolist() == [[5, 6]]
