"""Augmentation: pure in (sample, seed), within its ranges, and nothing at all where all ranges are zero."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from tiny_media import npy, picture_sample, png, sound, spoken_sample, tone, watch_sample, wrist

from mmfusion.data.augment import Augment, AugmentAudio, AugmentImage, AugmentSensor, triads
from mmfusion.data.decode import decode_part, decode_sample
from mmfusion.data.series import array_of, length_s, times_of
from mmfusion.types import Part

STILL: dict[str, Any] = dict.fromkeys(
    (
        "rotate_deg",
        "zoom",
        "stretch",
        "shear_deg",
        "shift",
        "flip",
        "brightness",
        "contrast",
        "saturation",
        "mix",
        "blur_px",
    ),
    0.0,
)
QUIET: dict[str, Any] = {"speed": 0.0, "gain_db": 0.0, "shift_s": 0.0, "noise_db": 200.0}
FULL = Augment(image=AugmentImage(), audio=AugmentAudio(crop_s=0.15), sensor=AugmentSensor(window_s=2.0))


def picture(size: tuple[int, int] = (16, 16)) -> Part:
    return decode_part(Part(type="image", file="png", data=png(size=size)))


def clip(seconds: float = 0.3) -> Part:
    return decode_part(Part(type="audio", file="wav", data=sound(tone(440, seconds))))


def test_the_same_seed_gives_the_same_and_the_input_is_left_alone() -> None:
    for sample in (picture_sample(1), spoken_sample(1), watch_sample(1)):
        decoded = decode_sample(sample)
        before = [np.array(p.data) for p in decoded.parts if p.data is not None]
        first, again, other = FULL(decoded, 7), FULL(decoded, 7), FULL(decoded, 8)
        for a, b, c in zip(first.parts, again.parts, other.parts, strict=True):
            if a.type == "text":
                assert a == b == c
                continue
            assert np.array_equal(array_of(a), array_of(b))
            assert not np.array_equal(array_of(a), array_of(c))
        for part, kept in zip([p for p in decoded.parts if p.data is not None], before, strict=True):
            assert np.array_equal(array_of(part), kept)


def test_none_leaves_a_modality_alone() -> None:
    decoded = decode_sample(spoken_sample(0))
    changed = Augment(image=AugmentImage())(decoded, 0)
    assert changed.parts[1].data is decoded.parts[1].data
    assert not np.array_equal(array_of(changed.parts[0]), array_of(decoded.parts[0]))


def test_zero_ranges_change_nothing() -> None:
    rng = random.Random(0)
    part = picture((20, 12))
    assert np.array_equal(array_of(AugmentImage(**STILL)(part, rng)), array_of(part))
    heard = clip()
    np.testing.assert_allclose(array_of(AugmentAudio(**QUIET)(heard, rng)), array_of(heard), atol=1e-6)
    worn = decode_part(wrist())
    still = AugmentSensor(window_s=100.0, rotate_deg=0.0, scale=0.0, speed=0.0)(worn, rng)
    np.testing.assert_allclose(array_of(still), array_of(worn), rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (48, 48), (33, 20)])
def test_pictures_keep_their_shape(size: tuple[int, int]) -> None:
    made = array_of(AugmentImage()(picture(size), random.Random(0)))
    assert made.shape == (size[1], size[0], 3)
    assert made.dtype == np.uint8


def test_a_turn_by_a_quarter() -> None:
    class Turned(random.Random):
        """The first number drawn is the angle, at its largest; all others lie in the middle."""

        first = True

        def uniform(self, a: float, b: float) -> float:
            value, self.first = (b if self.first else (a + b) / 2), False
            return value

    part = picture()
    turned = array_of(AugmentImage(**{**STILL, "rotate_deg": 90.0})(part, Turned(0)))
    inner = slice(1, -1)  # at the edge the colour of the corners begins
    np.testing.assert_allclose(turned[inner, inner], np.rot90(array_of(part))[inner, inner], atol=1)


def test_a_flip_and_a_grey_picture() -> None:
    part = picture((20, 12))
    flipped = AugmentImage(**{**STILL, "flip": 1.0})(part, random.Random(0))
    assert np.array_equal(array_of(flipped), array_of(part)[:, ::-1])
    grey = dataclasses.replace(part, data=np.full((8, 8, 3), 90, np.uint8))
    mixed = array_of(AugmentImage(**{**STILL, "mix": 0.3, "saturation": 1.0})(grey, random.Random(3)))
    np.testing.assert_allclose(mixed, 90, atol=1)


def test_contrast_and_brightness_stay_in_range() -> None:
    grey = dataclasses.replace(picture(), data=np.full((8, 8, 3), 200, np.uint8))
    values = [
        array_of(AugmentImage(**{**STILL, "contrast": 0.25, "brightness": 0.1})(grey, random.Random(i)))[0, 0, 0]
        for i in range(200)
    ]
    low, high = 127.5 + 72.5 / 1.25 - 12.75, 127.5 + 72.5 * 1.25 + 12.75
    assert low - 1 <= min(values) < low + 12
    assert high - 12 < max(values) <= high + 1


def test_sound_is_cropped_moved_and_louder_within_its_ranges() -> None:
    part = clip(1.0)
    lengths, levels = [], []
    for i in range(60):
        change = AugmentAudio(crop_s=0.25, speed=0.1, gain_db=6.0, shift_s=0.1, noise_db=60.0)
        made = array_of(change(part, random.Random(i)))
        assert made.dtype == np.float32
        lengths.append(len(made) / 16_000)
        levels.append(20 * np.log10(np.abs(made).max() / 0.5))
    assert 0.25 / 1.1 <= min(lengths) < 0.26
    assert 0.32 < max(lengths) <= 0.25 * 1.1 + 0.1
    assert -6.2 < min(levels) < -5
    assert 5 < max(levels) < 6.2


def test_speed_moves_the_pitch() -> None:
    class Fast(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    made = array_of(AugmentAudio(**{**QUIET, "speed": 0.25})(clip(0.5), Fast(0)))
    assert len(made) == pytest.approx(0.5 * 16_000 / 1.25, abs=2)
    assert np.fft.rfftfreq(len(made), 1 / 16_000)[np.abs(np.fft.rfft(made)).argmax()] == pytest.approx(550, abs=3)


def test_one_measurement_of_sound_and_silence() -> None:
    for wave in (np.zeros(4000, np.float32), np.zeros(1, np.float32)):
        made = AugmentAudio()(dataclasses.replace(clip(), data=wave), random.Random(0))
        assert np.isfinite(array_of(made)).all()
        assert len(array_of(made)) >= 1


def test_a_worn_device_is_turned_as_one() -> None:
    names = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z", "light")
    series = np.random.default_rng(0).standard_normal((100, 7)).astype(np.float32)
    part = decode_part(wrist(data=npy(series), channels=names, units=("g",) * 3 + ("rad/s",) * 3 + ("lux",)))
    assert triads(part) == [[0, 1, 2], [3, 4, 5]]
    made = array_of(AugmentSensor(window_s=100, rotate_deg=30, scale=0.0, speed=0.0)(part, random.Random(1)))
    for triad in ([0, 1, 2], [3, 4, 5]):
        turn, *_ = np.linalg.lstsq(series[:, triad], made[:, triad], rcond=None)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(turn) == pytest.approx(1, abs=1e-5)
        assert 0 < np.degrees(np.arccos((np.trace(turn) - 1) / 2)) <= 30.01
    one, *_ = np.linalg.lstsq(series[:, :3], made[:, :3], rcond=None)
    other, *_ = np.linalg.lstsq(series[:, 3:6], made[:, 3:6], rcond=None)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.array_equal(made[:, 6], series[:, 6])


def test_half_a_triad_and_other_units_are_not_turned() -> None:
    assert triads(wrist(channels=("a_x", "a_y", "b_z"))) == []
    assert triads(wrist(units=("g", "g", "m/s^2"))) == []
    assert triads(wrist(channels=("AccX", "AccY", "AccZ"))) == [[0, 1, 2]]


def test_windows_of_series_have_their_length_at_any_speed() -> None:
    part = decode_part(wrist(steps=500))
    starts = set()
    for i in range(30):
        made = AugmentSensor(window_s=2.0, speed=0.2)(part, random.Random(i))
        assert length_s(made) == pytest.approx(2.0, abs=0.03)
        assert times_of(made)[0] < 0.03
        starts.add(round(made.start_s, 3))
    assert len(starts) > 25
    assert min(starts) >= 0
    assert max(starts) < 8.5
