"""What ranks tell each other: two real processes have the loss and the gradients of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mmfusion.objectives.contrastive import Contrastive
from mmfusion.ranks import leave, of_all, rows_of_all, together
from mmfusion.types import Batch, Modality, Outputs
from tests.forked import Forked
from tests.objectives.tiny_outputs import batch, outputs

WIDTH, SPACE = 5, 4
SAMPLES: dict[Modality, list[int]] = {"image": [0, 1, 2, 3], "text": [0, 1, 2, 3, 4, 5]}  # whose parts there are
CONCEPTS = [7, 8, 7, 9, 8, 9]  # samples 0 and 2 are one concept, so are 1 and 4, 3 and 5


def share(samples: list[int]) -> tuple[Batch, dict[Modality, Tensor]]:
    """Some of the samples as a batch, with what its parts hold; one without a part of a modality has a dummy one."""
    own: dict[Modality, list[int]] = {name: [s for s in owners if s in samples] for name, owners in SAMPLES.items()}
    places: dict[Modality, list[int]] = {name: [samples.index(s) for s in owners] for name, owners in own.items()}
    made = batch({name: place or [-1] for name, place in places.items()}, concept=[CONCEPTS[s] for s in samples])
    drawn: dict[Modality, Tensor] = {
        name: torch.randn(len(CONCEPTS), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed, name in enumerate(SAMPLES)
    }
    return made, {name: drawn[name][owners or [0]] for name, owners in own.items()}


def loss_and_gradients(samples: list[int]) -> dict[str, Tensor]:
    """Of this rank's share of the step's loss: sum over the count of all ranks."""
    made, held = share(samples)
    objective = Contrastive(pairs=[["image", "text"]], temperature=0.5).double()
    encoders = {name: torch.eye(WIDTH, SPACE, dtype=torch.float64).requires_grad_() for name in SAMPLES}
    given: Outputs = dataclasses.replace(
        outputs(made), embeddings={name: F.normalize(held[name] @ encoders[name], dim=-1) for name in SAMPLES}
    )
    count = sum(of_all(objective.count(made)))
    (loss,) = objective(given, made).values()
    (loss.sum / count).backward()
    gradients = {name: encoder.grad for name, encoder in encoders.items()} | {"scale": objective.log_scale.grad}
    return {"loss": loss.sum.detach() / count, **{name: g for name, g in gradients.items() if g is not None}}


def one_of_two(rank: int, samples: list[int], folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    assert of_all(rank) == [0, 1]
    uneven = torch.full((rank + 1, 2), float(rank))
    assert rows_of_all(uneven).tolist() == [[0, 0], [1, 1], [1, 1]]
    found = loss_and_gradients(samples)
    for tensor in found.values():
        dist.all_reduce(tensor)
    torch.save(found, folder / f"{rank}.pt")
    leave()
    assert not together()


def two(folder: Path, *shares: list[int]) -> list[dict[str, Tensor]]:
    places = [folder / str(rank) for rank in range(2)]
    for place in places:
        place.mkdir()
    ranks = [Forked(one_of_two, rank, shares[rank], folder, folder=places[rank]) for rank in range(2)]
    for process in ranks:
        assert process.ended()[0] == 0, process.written()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("shares", [([0, 1, 2], [3, 4, 5]), ([0, 1, 2, 3], [4, 5])], ids=["even", "no picture"])
def test_two_ranks_have_the_loss_and_gradients_of_one_batch(shares: tuple[list[int], ...], tmp_path: Path) -> None:
    """Each sees the other's parts among the candidates; the second may have none of a modality itself."""
    expected = loss_and_gradients(list(range(6)))
    assert expected["image"].abs().max() > 0.01
    for found in two(tmp_path, *shares):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_one_process_alone_talks_to_nobody() -> None:
    x = torch.ones(2, 3)
    assert of_all("a") == ["a"]
    assert rows_of_all(x) is x
    leave()
