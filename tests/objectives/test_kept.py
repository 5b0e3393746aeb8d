"""What the reference said is remembered by what it saw, and by nothing else."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from mmfusion.objectives.functional import dpo
from mmfusion.objectives.kept import Kept, fingerprints
from mmfusion.objectives.preference import Preference
from mmfusion.training.reference import Frozen
from mmfusion.types import IGNORE, Batch, Patches, Rows
from tests.models.tiny_multimodal import BEGIN, images, series, tiny_model, widen

PROMPTS, ANSWERS = ([7, 8], [9], [6, 6, 5]), (([20, 21], [22]), ([23], [24, 25, 26]), ([27], [28]))


def asked(samples: list[int], parts: dict[int, Patches], length: int = 24) -> Batch:
    """A batch of these samples in this order, a row each: a picture's token, the prompt, two answers."""
    rows: dict[str, list[list[int]]] = {
        name: [] for name in ("ids", "labels", "document", "position", "slot", "answer")
    }
    for k, sample in enumerate(samples):
        prompt, cells = [BEGIN, 3, *PROMPTS[sample]], []
        cells += [(p, IGNORE, k, i, k if p == 3 else -1, -1) for i, p in enumerate(prompt)]
        for number, answer in enumerate(ANSWERS[sample]):
            said = [2, *answer]
            following = [*answer, IGNORE]
            cells += [(p, following[i], k, len(prompt) + i, -1, 2 * k + number) for i, p in enumerate(said)]
        cells += [(0, IGNORE, -1, 0, -1, -1)] * (length - len(cells))
        for name, values in zip(rows, zip(*cells, strict=True), strict=True):
            rows[name].append(list(values))
    of = torch.arange(len(samples)).repeat_interleave(2)
    made = {name: torch.tensor(values) for name, values in rows.items()}
    score = torch.tensor([1.0, 0.0]).repeat(len(samples))
    shown = [parts[sample] for sample in samples]
    joined = {f: torch.cat([getattr(one, f) for one in shown]) for f in ("values", "coords", "valid")}
    picture = Patches(joined["values"], joined["coords"], joined["valid"], torch.arange(len(samples)))
    dummy = dataclasses.replace(series([1], [-1]))
    return Batch(
        {"image": picture, "sensor": dummy},
        Rows(**made, owner=torch.arange(len(samples)), of=of, score=score),
        tuple(map(str, samples)), torch.tensor(samples), torch.tensor(samples),
    )  # fmt: skip


@pytest.fixture
def parts() -> dict[int, Patches]:
    torch.manual_seed(0)
    return {k: images([(2, 2)], [0]) for k in range(3)}


def test_what_is_seen_again_has_the_same_name_wherever_it_stands(parts: dict[int, Patches]) -> None:
    names = fingerprints(asked([0, 1, 2], parts))
    assert len(set(names)) == 3
    assert fingerprints(asked([2, 0], parts)) == [names[2], names[0]]
    wide = {k: widen(part, 2) for k, part in parts.items()}
    assert fingerprints(asked([1, 2], wide, length=31)) == names[1:]


def test_another_pixel_piece_or_label_has_another_name(parts: dict[int, Patches]) -> None:
    batch = asked([0, 1], parts)
    names = fingerprints(batch)
    values = batch.streams["image"].values.clone()
    values[1, 2, 3] += 1e-3
    other = dataclasses.replace(batch, streams={"image": dataclasses.replace(batch.streams["image"], values=values)})
    assert fingerprints(other)[0] == names[0]
    assert fingerprints(other)[1] != names[1]
    for field, place in (("ids", 2), ("labels", 5)):
        changed = getattr(batch.rows, field).clone()
        changed[0, place] += 1
        other = dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, **{field: changed}))
        assert fingerprints(other)[0] != names[0]
        assert fingerprints(other)[1] == names[1]


def test_channels_that_another_series_adds_as_padding_change_no_name() -> None:
    torch.manual_seed(0)
    alone = series([3], [0], channels=2)
    assert alone.description is not None
    beside = dataclasses.replace(
        alone,
        values=torch.cat([alone.values, torch.zeros(1, 3, 1, *alone.values.shape[3:])], dim=2),
        description=dataclasses.replace(
            alone.description,
            name=torch.cat([alone.description.name, torch.zeros(1, 1, dtype=torch.int64)], dim=1),
            grid=torch.cat([alone.description.grid, torch.zeros(1, 1, 2)], dim=1),
            valid=torch.cat([alone.description.valid, torch.zeros(1, 1, dtype=torch.bool)], dim=1),
        ),
    )
    batch = asked([0], {0: images([(2, 2)], [0])})
    names = [fingerprints(dataclasses.replace(batch, streams={"sensor": one})) for one in (alone, beside)]
    assert names[0] == names[1]


def test_only_what_is_not_known_is_computed(parts: dict[int, Patches]) -> None:
    kept, calls = Kept(), 0

    def said(values: list[float]) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tensor(values)

    assert kept(asked([0, 1], parts), lambda: said([1, 2, 3, 4])).tolist() == [1, 2, 3, 4]
    assert kept(asked([1, 0], parts), lambda: said([])).tolist() == [3, 4, 1, 2]
    assert calls == 1
    assert kept(asked([1, 2], parts), lambda: said([3, 4, 5, 6])).tolist() == [3, 4, 5, 6]
    assert kept(asked([2], parts), lambda: said([])).tolist() == [5, 6]
    assert calls == 2


def test_the_loss_and_its_gradient_are_the_same_as_without(parts: dict[int, Patches]) -> None:
    model = tiny_model()
    reference = Frozen(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    found = {}
    for keep in (False, True):
        objective = Preference(loss=partial(dpo, beta=0.5), keep=keep)
        objective.frozen = reference
        for samples in ([0, 1], [2], [1, 2, 0]):
            batch = asked(samples, parts)
            model.zero_grad()
            losses = objective(model(batch), batch)
            losses["preference"].sum.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.decoder.parameters() if p.grad is not None])
        found[keep] = float(losses["preference"].sum.detach()), gradient
        assert ("preference/kl" in losses) is not keep
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-4, atol=1e-6)
