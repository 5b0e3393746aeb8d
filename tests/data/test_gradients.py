"""Cells of colour and oriented gradients: worked by hand, and what they must not depend on."""

from __future__ import annotations

import math

import numpy as np

from mmfusion.data.gradients import cells


def picture(brightness: np.ndarray) -> np.ndarray:
    return np.repeat(np.round(brightness)[:, :, None], 3, axis=2).astype(np.uint8)


def test_without_orientations_a_cell_is_its_mean_colour() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    made = cells(pixels, 2, 0)
    assert made.shape == (2, 2, 3)
    assert math.isclose(made[0, 0, 0], (0 + 3 + 12 + 15) / 4 / 127.5 - 1, rel_tol=1e-5)
    assert np.allclose(cells(pixels, 1, 0), pixels / 127.5 - 1, atol=1e-6)


def test_a_ramp_answers_in_its_own_direction_alone() -> None:
    right = picture(np.tile(np.arange(16) * 10.0, (16, 1)))
    inner = cells(right, 2, 4)[3:-3, 3:-3, 3:]  # orientations 0, 45, 90 and 135 degrees
    energy = 2 * 20 / 255  # the difference over two pixels, times two; its cosine is 1
    expected = 2 * energy / math.sqrt(energy**2 + 0.01) - 0.5
    assert np.allclose(inner[..., 0], expected, atol=1e-4)
    assert np.allclose(inner[..., 1:], -0.5, atol=1e-4)
    down = cells(right.transpose(1, 0, 2), 2, 4)[3:-3, 3:-3, 3:]
    assert np.allclose(down[..., 2], expected, atol=1e-4)
    assert np.allclose(down[..., [0, 1, 3]], -0.5, atol=1e-4)


def test_a_negative_has_the_same_orientations() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.allclose(cells(pixels, 2, 8)[..., 3:], cells(255 - pixels, 2, 8)[..., 3:], atol=1e-4)


def test_a_flat_picture_is_finite_and_empty() -> None:
    assert np.allclose(cells(picture(np.full((8, 8), 77.0)), 2, 8)[..., 3:], -0.5)
