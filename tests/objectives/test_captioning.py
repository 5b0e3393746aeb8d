"""The captioning objective: sum and count, split over micro-batches."""

import dataclasses
import itertools

import torch
from tiny_outputs import batch, outputs
from torch.nn import functional as F

from mmfusion.objectives.captioning import Captioning
from mmfusion.objectives.functional import captioning_loss
from mmfusion.types import IGNORE, Batch, Outputs, Rows

LABELS = torch.tensor([[1, IGNORE, 3], [IGNORE] * 3, [4, 5, 8], [IGNORE, IGNORE, 0]])


def test_sum_and_count():
    made = batch({"image": [0]}, concept=[1], labels=LABELS)
    given = outputs(made)
    objective = Captioning(label_smoothing=0.1)
    loss = objective(given, made)["captioning"]
    logits = given.hidden @ given.unembedding.T
    expected = F.cross_entropy(logits.transpose(1, 2), LABELS, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss.sum, expected)
    assert loss.count == objective.count(made) == 6
    assert objective.modalities == ("image", "audio", "sensor", "video")
    assert objective.views(made) is made


def part(given: Outputs, made: Batch, rows: slice) -> tuple[Outputs, Batch]:
    kept = {f.name: getattr(made.rows, f.name) for f in dataclasses.fields(made.rows)}
    kept = {name: value[rows] if value.ndim == 2 else value for name, value in kept.items()}
    smaller = dataclasses.replace(made, rows=dataclasses.replace(made.rows, **kept))
    return dataclasses.replace(given, hidden=given.hidden[rows]), smaller


def test_micro_batches_add_up():
    """Unequal splits, one without any label: sums and counts give the whole's mean and gradient."""
    made = batch({"image": [0]}, concept=[1], labels=LABELS)
    given = outputs(made)
    objective = Captioning()
    whole = objective(given, made)["captioning"]
    (gradient,) = torch.autograd.grad(whole.sum / whole.count, given.unembedding)
    for cuts in ([0, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]):
        slices = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        losses = [objective(*part(given, made, rows))["captioning"] for rows in slices]
        total = sum(loss.count for loss in losses)
        assert total == whole.count
        mean = torch.stack([loss.sum / total for loss in losses]).sum()
        torch.testing.assert_close(mean, whole.sum / whole.count)
        torch.testing.assert_close(torch.autograd.grad(mean, given.unembedding)[0], gradient)


def test_of_several_answers_only_the_best_is_learnt() -> None:
    """Two answers of one document: the second has the higher score; a document of one is learnt whatever its score."""
    answer = torch.tensor([[-1, 0, 0, 1, 1, 2, 2]])
    labels = torch.tensor([[IGNORE, 1, IGNORE, 2, 3, 4, IGNORE]])
    document = torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    zero = torch.zeros_like(labels)
    rows = Rows(
        zero, labels, document, zero, zero - 1, answer, torch.tensor([0, 1]), torch.tensor([0, 0, 1]),
        torch.tensor([0.0, 1.0, -3.0]),
    )  # fmt: skip
    made = dataclasses.replace(batch({}, [5, 6]), rows=rows)
    hidden, unembedding = torch.randn(1, 7, 4), torch.randn(6, 4)
    loss = Captioning()(Outputs({}, {}, hidden, unembedding), made)["captioning"]
    learnt = torch.tensor([[IGNORE, IGNORE, IGNORE, 2, 3, 4, IGNORE]])
    assert Captioning().count(made) == loss.count == 3
    torch.testing.assert_close(loss.sum, captioning_loss(hidden, unembedding, learnt).sum())
    assert loss.owner is not None
    assert loss.owner.tolist() == [0, 0, 1]
