"""The contrastive objective: who is whose positive, what is counted."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny_outputs import SPACE, batch, outputs
from torch.nn import functional as F

from mmfusion.objectives.contrastive import MAX_SCALE, Contrastive
from mmfusion.objectives.functional import multi_positive_info_nce


def contrastive(temperature: float = 0.1) -> Contrastive:
    return Contrastive(pairs=[["image", "text"]], temperature=temperature)


def only(losses: dict) -> tuple[torch.Tensor, int]:
    (loss,) = losses.values()
    return loss.sum, loss.count


def test_values_by_hand():
    """Two pictures and two texts on two axes, temperature 1: each logit is 1 for its own and 0 for the other."""
    made = batch({"image": [0, 1], "text": [0, 1]}, concept=[5, 6])
    axes = torch.eye(2, SPACE)
    given = outputs(made)
    given = dataclasses.replace(given, embeddings={"image": axes, "text": axes})
    total, count = only(contrastive(temperature=1.0)(given, made))
    assert count == 4
    assert total.item() == pytest.approx(4 * math.log(1 + math.exp(-1)))


def test_owners_order_the_parts():
    """Texts in another order, and a sample without a picture, are found by their owner."""
    made = batch({"image": [2, 0], "text": [0, 1, 2]}, concept=[5, 6, 7])
    given = outputs(made)
    total, count = only(contrastive()(given, made))
    logits = 10 * given.embeddings["image"] @ given.embeddings["text"].T
    there = F.cross_entropy(logits, torch.tensor([2, 0]), reduction="sum")
    back = F.cross_entropy(logits.T[[0, 2]], torch.tensor([1, 0]), reduction="sum")
    torch.testing.assert_close(total, there + back)
    assert count == 4 == contrastive().count(made)


def test_equal_concepts_are_positives_whosever_they_are():
    made = batch({"image": [0, 1], "text": [0, 1, 2]}, concept=[5, 5, 6])
    given = outputs(made)
    total, count = only(contrastive()(given, made))
    positive = torch.tensor([[True, True, False], [True, True, False]])
    logits = 10 * given.embeddings["image"] @ given.embeddings["text"].T
    there = multi_positive_info_nce(logits, positive, torch.ones_like(positive))
    back = multi_positive_info_nce(logits.T, positive.T, torch.ones_like(positive.T))
    torch.testing.assert_close(total, there.sum() + back.sum())
    assert count == 2 + 2 == contrastive().count(made)


def test_dummy_parts_are_neither_positives_nor_negatives():
    whole = batch({"image": [0, 1], "text": [0, 1]}, concept=[5, 6])
    given = outputs(whole)
    total, count = only(contrastive()(given, whole))
    # The dummy owner -1 must not find the last sample's concept either.
    more = batch({"image": [0, 1, -1], "text": [0, 1, -1]}, concept=[5, 6])
    longer = outputs(more)
    longer.embeddings["image"] = torch.cat([given.embeddings["image"], longer.embeddings["image"][2:]])
    longer.embeddings["text"] = torch.cat([given.embeddings["text"], longer.embeddings["text"][2:]])
    again, same = only(contrastive()(longer, more))
    torch.testing.assert_close(again, total)
    assert same == count == 4


@pytest.mark.parametrize("owners", [([-1], [0, 1]), ([0, 1], [-1]), ([-1], [-1]), ([0], [1])])
def test_nothing_to_compare_is_zero_with_zero_gradients(owners: tuple[list[int], list[int]]):
    made = batch({"image": owners[0], "text": owners[1]}, concept=[5, 6])
    objective, given = contrastive(), outputs(made)
    total, count = only(objective(given, made))
    total.backward()
    assert (total.item(), count, objective.count(made)) == (0, 0, 0)
    for gradient in (objective.log_scale.grad, given.embeddings["image"].grad, given.embeddings["text"].grad):
        assert gradient is not None
        assert not gradient.any()


def test_a_batch_of_holes():
    made = batch({"image": [-1], "text": [-1]}, concept=[])
    total, count = only(contrastive()(outputs(made), made))
    assert (total.item(), count) == (0, 0)


def test_it_is_symmetric():
    made = batch({"image": [0, 1, 1], "text": [0, 1]}, concept=[5, 6])
    given = outputs(made)
    forth = Contrastive(pairs=[["image", "text"]])(given, made)["contrastive/image-text"]
    back = Contrastive(pairs=[["text", "image"]])(given, made)["contrastive/text-image"]
    torch.testing.assert_close(forth.sum, back.sum)
    assert forth.count == back.count == 5


def test_several_pairs_are_named_and_counted_apart():
    made = batch({"image": [0, 1], "audio": [2], "text": [0, 1, 2]}, concept=[5, 6, 7])
    objective = Contrastive(pairs=[["image", "text"], ["audio", "text"]])
    losses = objective(outputs(made), made)
    assert {name: loss.count for name, loss in losses.items()} == {
        "contrastive/image-text": 4,
        "contrastive/audio-text": 2,
    }
    assert objective.count(made) == 6
    assert objective.modalities == ("image", "audio", "text")
    assert objective.views(made) is made
    losses["contrastive/audio-text"].sum.backward()
    assert objective.log_scale.grad is not None
    assert (objective.log_scale.grad != 0).tolist() == [False, True]


def test_the_scale_is_bounded():
    made = batch({"image": [0, 1], "text": [0, 1]}, concept=[5, 6])
    given = outputs(made)
    steep, bound = contrastive(temperature=1e-6), contrastive(temperature=1 / MAX_SCALE)
    torch.testing.assert_close(only(steep(given, made))[0], only(bound(given, made))[0])
