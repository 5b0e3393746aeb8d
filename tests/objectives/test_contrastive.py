"""The contrastive objective: who is whose positive, what is counted, what the memory does."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny_outputs import SPACE, batch, outputs
from torch.nn import functional as F

from mmfusion.objectives.contrastive import MAX_SCALE, Contrastive
from mmfusion.objectives.functional import multi_positive_info_nce
from mmfusion.types import Outputs


def contrastive(memory: int = 0, temperature: float = 0.1) -> Contrastive:
    return Contrastive(pairs=[["image", "text"]], width=SPACE, temperature=temperature, memory=memory)


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
    objective, given = contrastive(memory=3), outputs(made)
    total, count = only(objective(given, made))
    total.backward()
    assert (total.item(), count, objective.count(made)) == (0, 0, 0)
    for gradient in (objective.log_scale.grad, given.embeddings["image"].grad, given.embeddings["text"].grad):
        assert gradient is not None
        assert not gradient.any()


def test_a_batch_of_holes():
    made = batch({"image": [-1], "text": [-1]}, concept=[])
    total, count = only(contrastive(memory=2)(outputs(made), made))
    assert (total.item(), count) == (0, 0)


def test_it_is_symmetric():
    made = batch({"image": [0, 1, 1], "text": [0, 1]}, concept=[5, 6])
    given = outputs(made)
    forth = Contrastive(pairs=[["image", "text"]], width=SPACE)(given, made)["contrastive/image-text"]
    back = Contrastive(pairs=[["text", "image"]], width=SPACE)(given, made)["contrastive/text-image"]
    torch.testing.assert_close(forth.sum, back.sum)
    assert forth.count == back.count == 5


def test_several_pairs_are_named_and_counted_apart():
    made = batch({"image": [0, 1], "audio": [2], "text": [0, 1, 2]}, concept=[5, 6, 7])
    objective = Contrastive(pairs=[["image", "text"], ["audio", "text"]], width=SPACE)
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


# --------------------------------------------------------------------------------------------------------------- memory


def steps() -> list[tuple[Outputs, object]]:
    made = [batch({"image": [0, 1], "text": [0, 1, -1]}, concept=[c, c + 1]) for c in (10, 20, 10)]
    return [(outputs(b, seed), b) for seed, b in enumerate(made)]


def test_past_texts_are_further_negatives_but_for_their_own_concept():
    objective = contrastive(memory=8)
    (first, a), (second, b), (third, c) = steps()
    bare = contrastive()
    torch.testing.assert_close(only(objective(first, a))[0], only(bare(first, a))[0])  # nothing is stored yet
    objective(second, b)
    x, y = third.embeddings["image"], third.embeddings["text"][:2]
    past = torch.cat([first.embeddings["text"][:2], second.embeddings["text"][:2]])
    logits = 10 * x @ torch.cat([y, past]).T
    # Columns: texts of concepts 10, 11, then the past: 10, 11, 20, 21. An anchor's own concept is left out of it.
    candidate = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1]]).bool()
    positive = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    there = multi_positive_info_nce(logits, positive, candidate).sum()
    back = F.cross_entropy(10 * y @ x.T, torch.arange(2), reduction="sum")
    total, count = only(objective(third, c))
    torch.testing.assert_close(total, there + back)
    assert count == 4


def test_the_memory_is_used_and_filled_in_training_only():
    objective = contrastive(memory=8)
    (first, a), (second, b), _ = steps()
    objective(first, a)
    objective.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    torch.testing.assert_close(only(objective(second, b))[0], only(contrastive()(second, b))[0])
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_a_state_dict_resumes_exactly():
    made = steps()
    whole, stopped, resumed = contrastive(memory=3), contrastive(memory=3), contrastive(memory=3)
    for given, b in made[:2]:
        whole(given, b)
        stopped(given, b)
    resumed.load_state_dict(stopped.state_dict())
    given, b = made[2]
    assert torch.equal(only(resumed(given, b))[0], only(whole(given, b))[0])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_losses_of_two_micro_batches_can_be_propagated_together():
    objective = contrastive(memory=3)
    total = torch.stack([only(objective(given, b))[0] for given, b in steps()]).sum()
    total.backward()
    assert objective.log_scale.grad is not None


def test_two_pairs_with_one_side_in_common_store_it_once():
    made = batch({"image": [0], "audio": [1], "text": [0, 1]}, concept=[5, 6])
    objective = Contrastive(pairs=[["image", "text"], ["audio", "text"]], width=SPACE, memory=8)
    objective(outputs(made), made)
    assert objective.state_dict()["memories.text.seen"] == 2
