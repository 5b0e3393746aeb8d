"""Baselines on inputs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.evaluation import baselines


def drawing(shape: str, colour: tuple[int, int, int], shift: int = 0, size: int = 40) -> np.ndarray:
    picture = np.full((size, size, 3), 255, np.uint8)
    if shape == "bar":
        picture[8:-8, 16 + shift : 24 + shift] = colour
    else:
        y, x = np.mgrid[:size, :size]
        picture[(y - 20) ** 2 + (x - 20 - shift) ** 2 < 150] = colour
    return picture


RED, BLUE = (220, 30, 30), (30, 30, 220)


def test_square_keeps_the_ratio_and_pads_white() -> None:
    square = baselines.on_square(np.zeros((10, 20, 3), np.uint8), 40)
    assert square.shape == (40, 40, 3)
    rows = (square[:, 20, 0] < 0.5).nonzero()[0]
    assert (rows.min(), rows.max()) == (10, 29)
    assert baselines.on_square(np.zeros((1, 200, 3), np.uint8), 48).shape == (48, 48, 3)


def test_nearest_by_hand() -> None:
    gallery = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert baselines.nearest(np.array([[0.0, 0.8]]), gallery, k=3).tolist() == [[2, 3, 0]]


def test_gradients_find_a_shape_that_pixels_lose() -> None:
    gallery = [drawing("bar", RED), drawing("disc", BLUE)]
    query = [drawing("bar", BLUE, shift=9)]
    features = baselines.gradients_and_blur(gallery + query)
    shape = slice(0, 5 * 5 * 4 * 9)
    assert baselines.nearest(features[2:, shape], features[:2, shape])[0, 0] == 0
    assert np.linalg.norm(features, axis=1) == pytest.approx([2**0.5] * 3, rel=1e-4)
    assert np.isfinite(baselines.gradients_and_blur([np.full((4, 4, 3), 255, np.uint8)])).all()


def test_sound_features_put_a_tone_in_its_band() -> None:
    rate_hz = 16000
    time_s = np.arange(rate_hz) / rate_hz
    means = [baselines.sound_features(np.sin(2 * np.pi * f * time_s), rate_hz)[:24] for f in (200, 1000, 4000)]
    # mel(f) = 2595 log10(1 + f / 700); 24 bands up to mel(8000) = 2840: 118 a band.
    assert [int(m.argmax()) for m in means] == [2, 8, 18]
    for wave in (np.zeros(160), np.zeros(1), np.zeros(16000)):
        features = baselines.sound_features(wave, rate_hz)
        assert features.shape == (74,)
        assert np.isfinite(features).all()


def test_series_features_by_hand() -> None:
    series = np.array([[1.0, np.nan, 2.0], [3.0, np.nan, 2.0], [np.nan, np.nan, 2.0], [5.0, np.nan, 2.0]])
    mean, spread, energy, steps = baselines.series_features(series).reshape(4, 3)
    assert mean == pytest.approx([3, 0, 2])
    assert spread == pytest.approx([(8 / 3) ** 0.5, 0, 0])
    assert energy == pytest.approx([35 / 3, 0, 4])
    assert steps == pytest.approx([2, 0, 0])  # only 1 -> 3 was measured at both ends


def test_logistic_regression_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    train = np.concatenate([rng.normal(-3, 1, (30, 4)), rng.normal(3, 1, (30, 4))])
    assert baselines.logistic_regression(train, ["low"] * 30 + ["high"] * 30, train[[0, 59]]) == ["low", "high"]


def test_commonest_is_decided() -> None:
    assert baselines.commonest(["b", "a", "b", "a", "c"]) == ("a", 0.4)
