"""Encoders: parity with timm's picture path, blindness to padding and channel order, no unused weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tiny_multimodal import (
    BANDS,
    FRAMES,
    PATCH_PX,
    POINTS,
    VOCAB,
    WIDTH,
    clips,
    image_coords,
    images,
    series,
    stack,
    texts,
    widen,
)
from tiny_multimodal import dummy as dummy_of
from torch import Tensor, nn

from mmfusion.models.encoders import image as image_encoder
from mmfusion.models.encoders.audio import AudioEncoder
from mmfusion.models.encoders.image import ImageEncoder
from mmfusion.models.encoders.sensor import SensorEncoder
from mmfusion.models.encoders.text import TextEncoder
from mmfusion.types import Channels, Patches, Tokens

Case = tuple[Callable[[], nn.Module], Callable[[], Patches], int]
CASES: dict[str, Case] = {
    "image": (
        lambda: ImageEncoder(width=WIDTH, depth=2, heads=2, patch_px=PATCH_PX, merge=4, grid=3),
        lambda: images([(4, 4), (2, 3), (3, 3)], [0, 1, 2]),
        4,
    ),
    "audio": (
        lambda: AudioEncoder(frames=FRAMES, bands=BANDS, width=WIDTH, depth=2, heads=2, merge=2),
        lambda: clips([5, 2, 1], [0, 1, 2]),
        2,
    ),
    "sensor": (
        lambda: SensorEncoder(points=POINTS, width=WIDTH, depth=2, heads=2, buckets=16),
        lambda: series([5, 2, 1], [0, 1, 2]),
        1,
    ),
    "text": (
        lambda: TextEncoder(vocab=VOCAB, width=WIDTH, depth=2, heads=2),
        lambda: texts([5, 2, 1], [0, 1, 2]),
        1,
    ),
}


def build(name: str) -> tuple[nn.Module, Patches, int]:
    torch.manual_seed(0)
    encoder, parts, merge = CASES[name]
    return encoder(), parts(), merge


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str):
    encoder, parts, merge = build(name)
    tokens = encoder(parts)
    P, N = parts.valid.shape
    M = -(-N // merge)
    assert (encoder.modality, encoder.width, encoder.merge) == (name, WIDTH, merge)
    assert tokens.x.shape == (P, M, WIDTH)
    assert tokens.coords.shape == (P, M, 4)
    assert tokens.valid.shape == (P, M)
    assert torch.equal(tokens.owner, parts.owner)
    assert tokens.valid.sum(dim=1).tolist() == [-(-n // merge) for n in parts.valid.sum(dim=1).tolist()]


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_nothing(name: str):
    encoder, parts, _ = build(name)
    narrow, wide = encoder(parts), encoder(widen(parts, 5))
    M = narrow.valid.shape[1]
    assert torch.equal(wide.valid[:, :M], narrow.valid)
    assert not wide.valid[:, M:].any()
    real = narrow.valid
    torch.testing.assert_close(wide.x[:, :M][real], narrow.x[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide.coords[:, :M][real], narrow.coords[real])


@pytest.mark.parametrize("name", CASES)
def test_a_part_does_not_know_its_neighbours(name: str):
    encoder, parts, _ = build(name)
    first, last = encoder(parts), encoder(select(parts, slice(2, 3)))
    real = first.valid[2]
    torch.testing.assert_close(last.x[0][real], first.x[2][real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_part_without_valid_patches_is_finite(name: str):
    encoder, parts, _ = build(name)
    tokens = encoder(dataclasses.replace(parts, valid=torch.zeros_like(parts.valid)))
    tokens.x.sum().backward()
    assert tokens.x.isfinite().all()
    assert not tokens.valid.any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("name", CASES)
def test_every_weight_gets_a_gradient(name: str):
    encoder, parts, _ = build(name)
    weighted(encoder(parts)).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CASES)
def test_the_dummy_part_gives_zeros_and_not_nothing(name: str):
    encoder, parts, _ = build(name)
    tokens = encoder(dummy_of(parts))
    assert int(tokens.valid.sum()) == 1
    (weighted(tokens) * 0).backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_weights(name: str):
    one, two = build(name)[0], build(name)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def select(parts: Patches, which: slice) -> Patches:
    description = parts.description
    if description is not None:
        description = Channels(description.name[which], description.grid[which], description.valid[which])
    return Patches(parts.values[which], parts.coords[which], parts.valid[which], parts.owner[which], description)


def weighted(tokens: Tokens) -> Tensor:
    """A sum in which no symmetry cancels a gradient."""
    return (tokens.x * torch.sin(torch.arange(tokens.x.numel()).view_as(tokens.x)))[tokens.valid].sum()


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("grid", [(3, 5), (2, 2), (6, 4), (1, 3)])
def test_packed_patches_equal_timms_picture_path(grid: tuple[int, int]):
    rows, columns = grid
    torch.manual_seed(0)
    encoder = ImageEncoder(width=WIDTH, depth=2, heads=2, patch_px=PATCH_PX, merge=1, grid=3)
    picture = torch.randn(1, 3, rows * PATCH_PX, columns * PATCH_PX)
    expected = encoder.vit.forward_features(picture)
    assert isinstance(expected, Tensor)
    # Cut the picture by hand: [3, rows, p, columns, p] -> a patch is [p, p, 3] flat.
    cut = picture[0].view(3, rows, PATCH_PX, columns, PATCH_PX).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    coords = image_coords(rows, columns, blocks=False)
    shuffle = torch.randperm(len(cut))  # positions are read from the coordinates, not from the order
    tokens = encoder(stack([cut[shuffle]], [coords[shuffle]], [0]))
    torch.testing.assert_close(tokens.x[0], expected[0][shuffle], rtol=1e-5, atol=1e-5)


def test_four_patches_of_a_block_make_one_token():
    torch.manual_seed(0)
    encoder = ImageEncoder(width=WIDTH, depth=1, heads=2, patch_px=PATCH_PX, merge=4, grid=4)
    parts = images([(4, 4)], [0])
    tokens = encoder(parts)
    assert tokens.coords[0, :, 1:3].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    # Whole blocks in another order are the same tokens in another order.
    order = torch.tensor([2, 0, 3, 1])
    blocks = (order[:, None] * 4 + torch.arange(4)).flatten()
    moved = encoder(dataclasses.replace(parts, values=parts.values[:, blocks], coords=parts.coords[:, blocks]))
    torch.testing.assert_close(moved.x, tokens.x[:, order], rtol=1e-5, atol=1e-5)
    # Patches in another order inside a block are another token.
    inside = torch.tensor([1, 0, 2, 3, *range(4, 16)])
    mixed = encoder(dataclasses.replace(parts, values=parts.values[:, inside], coords=parts.coords[:, inside]))
    assert (mixed.x[:, 0] - tokens.x[:, 0]).abs().max() > 1e-2


def test_an_odd_grid_is_padded_inside_its_blocks():
    """3x3 patches stand in four blocks of four, seven places of which hold nothing."""
    torch.manual_seed(0)
    encoder = ImageEncoder(width=WIDTH, depth=1, heads=2, patch_px=PATCH_PX, merge=4, grid=3)
    coords = image_coords(4, 4)
    valid = (coords[:, 1] < 3) & (coords[:, 2] < 3)
    values = torch.randn(16, 3 * PATCH_PX**2)
    tokens = encoder(Patches(values[None], coords[None], valid[None], torch.tensor([0])))
    assert tokens.valid.all()
    assert tokens.coords[0, :, 1:3].tolist() == [[0.5, 0.5], [0.5, 2.0], [2.0, 0.5], [2.0, 2.0]]
    rubbish = torch.where(valid[:, None], values, 100.0)
    again = encoder(Patches(rubbish[None], coords[None], valid[None], torch.tensor([0])))
    torch.testing.assert_close(again.x, tokens.x, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- sensors


def sensor() -> tuple[SensorEncoder, Patches, Channels]:
    encoder, parts, _ = build("sensor")
    assert isinstance(encoder, SensorEncoder)
    assert parts.description is not None
    return encoder, parts, parts.description


def channel_order(parts: Patches, channels: Channels, order: list[int]) -> Patches:
    description = Channels(channels.name[:, order], channels.grid[:, order], channels.valid[:, order])
    return dataclasses.replace(parts, values=parts.values[:, :, order], description=description)


def test_channel_order_means_nothing():
    encoder, parts, channels = sensor()
    moved = encoder(channel_order(parts, channels, [2, 0, 1]))
    torch.testing.assert_close(moved.x, encoder(parts).x, rtol=1e-5, atol=1e-5)


def test_which_channel_carries_a_value_means_something():
    encoder, parts, _ = sensor()
    swapped = encoder(dataclasses.replace(parts, values=parts.values[:, :, [1, 0, 2]]))
    assert (swapped.x - encoder(parts).x).abs().max() > 1e-2


def test_padded_channels_mean_nothing():
    encoder, parts, channels = sensor()
    P, N = parts.valid.shape
    more = Channels(
        torch.cat([channels.name, torch.full((P, 2), 99)], dim=1),
        torch.cat([channels.grid, torch.ones(P, 2, 2)], dim=1),
        torch.cat([channels.valid, torch.zeros(P, 2, dtype=torch.bool)], dim=1),
    )
    values = torch.cat([parts.values, 9 * torch.randn(P, N, 2, POINTS, 2)], dim=2)
    wide = encoder(dataclasses.replace(parts, values=values, description=more))
    torch.testing.assert_close(wide.x, encoder(parts).x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_unseen_channels_in_any_number(count: int):
    encoder, _, _ = sensor()
    parts = series([4], [0], channels=count)
    assert parts.description is not None
    name = torch.randint(0, 2**63 - 1, (1, count))
    tokens = encoder(dataclasses.replace(parts, description=dataclasses.replace(parts.description, name=name)))
    assert tokens.x.isfinite().all()
    assert tokens.x.shape == (1, 4, WIDTH)


def test_the_place_on_an_array_matters():
    encoder, parts, channels = sensor()
    moved = dataclasses.replace(parts, description=dataclasses.replace(channels, grid=channels.grid.flip(1)))
    assert (encoder(moved).x - encoder(parts).x).abs().max() > 1e-3


def test_a_sensor_part_without_description_is_refused():
    encoder, parts, _ = sensor()
    with pytest.raises(ValueError, match="description"):
        encoder(dataclasses.replace(parts, description=None))


def test_timm_is_told_that_there_is_no_wandb_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with image_encoder._without_wandb(), pytest.raises(ImportError):
        import wandb  # noqa: F401
    assert "wandb" not in sys.modules
    known = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", known)
    with image_encoder._without_wandb():
        assert sys.modules["wandb"] is known
