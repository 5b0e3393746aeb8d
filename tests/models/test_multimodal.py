"""The whole model: what it gives, any subset of modalities, no unused weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny_multimodal import SPACE, VOCAB, WIDTH, tiny_batch, tiny_model, widen
from torch import nn

from mmfusion.models.fusion.prefix import Prefix
from mmfusion.models.heads import PlacedHead
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.objectives.captioning import Captioning
from mmfusion.objectives.contrastive import Contrastive
from mmfusion.types import Batch, Modality

SENSES: tuple[Modality, ...] = ("image", "audio", "sensor")


def objectives() -> list[nn.Module]:
    return [
        Contrastive(pairs=[[name, "text"] for name in SENSES]),
        Captioning(),
    ]


def joint_loss(model: MultimodalModel, parts: list[nn.Module], batch: Batch) -> torch.Tensor:
    outputs = model(batch)
    losses = [loss for objective in parts for loss in objective(outputs, batch).values()]
    return torch.stack([loss.sum / max(loss.count, 1) for loss in losses]).sum()


def test_shapes():
    model, batch = tiny_model(), tiny_batch()
    outputs = model(batch)
    assert list(outputs.tokens) == ["image", "audio", "sensor", "text"]
    assert {name: tuple(e.shape) for name, e in outputs.embeddings.items()} == {
        "image": (2, SPACE),
        "audio": (1, SPACE),
        "sensor": (2, SPACE),
        "text": (5, SPACE),
    }
    assert outputs.hidden.shape == (*batch.rows.ids.shape, 24)
    assert outputs.unembedding.shape == (VOCAB, 24)


def test_every_weight_gets_a_gradient_from_the_joint_objectives():
    model, parts = tiny_model(), objectives()
    joint_loss(model, parts, tiny_batch()).backward()
    modules = nn.ModuleList([model, *parts])
    assert [n for n, p in modules.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("absent", [["image"], ["audio"], ["sensor"], ["image", "audio", "sensor"], [*SENSES, "text"]])
def test_absent_means_a_zero_gradient(absent: list[Modality]):
    model, parts = tiny_model(), objectives()
    joint_loss(model, parts, tiny_batch(absent)).backward()
    modules = nn.ModuleList([model, *parts])
    assert [n for n, p in modules.named_parameters() if p.grad is None] == []
    for name in SENSES:
        for module in (model.encoders[name], model.heads[name], model.fusion.projections[name]):
            moved = any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
            told = not (module is model.heads[name] and "text" in absent)
            assert moved == (name not in absent and told)


def test_an_absent_modality_changes_no_other_samples_results():
    model = tiny_model()
    whole, without = model(tiny_batch()), model(tiny_batch(["audio"]))
    for name in ("image", "sensor", "text"):
        torch.testing.assert_close(without.embeddings[name], whole.embeddings[name], rtol=1e-5, atol=1e-6)


def test_a_wider_padding_changes_nothing():
    model, batch = tiny_model(), tiny_batch()
    wide = dataclasses.replace(batch, streams={name: widen(parts, 6) for name, parts in batch.streams.items()})
    narrow, padded = model(batch), model(wide)
    torch.testing.assert_close(padded.hidden, narrow.hidden, rtol=1e-4, atol=1e-5)
    for name, embedding in narrow.embeddings.items():
        torch.testing.assert_close(padded.embeddings[name], embedding, rtol=1e-4, atol=1e-5)


def test_embed_is_what_forward_gives_for_any_subset():
    model, batch = tiny_model(), tiny_batch()
    whole = model(batch).embeddings
    for names in (["image"], ["audio", "text"], list(batch.streams)):
        some = model.embed({name: batch.streams[name] for name in batch.streams if name in names})
        assert sorted(some) == sorted(names)
        for name, embedding in some.items():
            assert torch.equal(embedding, whole[name])


def test_a_modality_without_head_has_no_embedding():
    model, batch = tiny_model(), tiny_batch()
    del model.heads["audio"]
    assert list(model(batch).embeddings) == list(model.embed(batch.streams)) == ["image", "sensor", "text"]


def test_a_batch_without_rows():
    model, batch = tiny_model(), tiny_batch()
    places = ("ids", "labels", "document", "position", "slot", "answer")
    none = dataclasses.replace(batch.rows, **{name: getattr(batch.rows, name)[:0] for name in places})
    outputs = model(dataclasses.replace(batch, rows=none))
    assert outputs.hidden.shape == (0, batch.rows.ids.shape[1], 24)


def test_the_same_seed_gives_the_same_weights_and_the_same_steps():
    results = []
    for _ in range(2):
        model, parts = tiny_model(), objectives()
        joint_loss(model, parts, tiny_batch()).backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_state_dict_holds_all_of_it():
    one, two = tiny_model(), tiny_model()
    with torch.no_grad():
        for p in one.parameters():
            p.add_(torch.randn_like(p) / 50)
    two.load_state_dict(one.state_dict())
    batch = tiny_batch()
    assert torch.equal(one(batch).hidden, two(batch).hidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": {"image": PlacedHead(width=8, out=4, anchors=(1, 1, 1, 1))}}, "heads.image has width 8"),
        ({"encoders": {"image": nn.Identity()}}, "encoders.image: Identity has no modality"),
        ({"heads": {"video": PlacedHead(width=8, out=4, anchors=(1, 1, 1, 1))}}, "without an encoder"),
        ({"fusion": Prefix(widths={"image": WIDTH}, width=24)}, "fusion.widths"),
        (
            {"fusion": Prefix(widths=dict.fromkeys(SENSES, WIDTH), width=24, embedded=9)},
            "fusion.embedded is 9, the heads' space has 12",
        ),
        ({"fusion": Prefix(widths=dict.fromkeys(SENSES, WIDTH), width=9)}, "fusion.width is 9, decoder.width is 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str):
    model = tiny_model()
    parts: dict[str, Any] = {
        "encoders": dict(model.encoders.items()),
        "heads": dict(model.heads.items()),
        "fusion": model.fusion,
        "decoder": model.decoder,
    }
    with pytest.raises(ValueError, match=message):
        MultimodalModel(**{**parts, **change})
    with pytest.raises(ValueError, match="is an encoder of text"):
        MultimodalModel(**{**parts, "encoders": {"image": model.encoders["text"]}})
