"""Patches, worked by hand or against another formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_media import npy, tone, wrist

from mmfusion.data.decode import decode_part
from mmfusion.data.patchify import (
    FLOOR,
    PartPatches,
    PatchifyAudio,
    PatchifyImage,
    PatchifySensor,
    PatchifyText,
    mel_filters,
)
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.types import Part, SkipSample


def image(pixels: np.ndarray) -> Part:
    return Part(type="image", file="png", data=pixels)


def audio(wave: np.ndarray, rate_hz: float = 16_000, **how: Any) -> Part:
    return Part(type="audio", file="wav", data=wave.astype(np.float32), rate_hz=rate_hz, **how)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_patches_come_in_blocks_of_four() -> None:
    """A 4 x 4 grid of one-pixel patches, numbered row by row, read in 2 x 2 blocks."""
    pixels = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), 3, axis=2)
    made = PatchifyImage(patch_px=1, merge=4, size_px=4)(image(pixels))
    order = np.round((made.values[:, 0] + 1) * 127.5).astype(int).tolist()
    assert order == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    cells = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert made.coords[:8].tolist() == [[0, r, c, 0] for r, c in cells]
    assert made.valid.all()
    assert made.tokens(4) == 4


def test_a_patch_is_read_row_by_row_with_its_colours_together() -> None:
    pixels = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3) * 20
    made = PatchifyImage(patch_px=2, merge=1, size_px=2)(image(pixels))
    np.testing.assert_allclose(made.values[0], pixels.ravel() / 127.5 - 1, atol=1e-6)
    assert made.values.shape == (1, 12)


def test_an_odd_grid_is_padded_with_what_is_not_valid() -> None:
    """A picture twice as wide as high: 1 x 2 patches of 3, in one block; then 3 x 3 patches in four blocks."""
    made = PatchifyImage(patch_px=4, merge=4, size_px=8)(image(np.full((4, 8, 3), 255, np.uint8)))
    assert made.valid.tolist() == [True, True, False, False]
    assert made.coords[:, 1:3].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    np.testing.assert_array_equal(made.values[2:], 0)
    square = PatchifyImage(patch_px=4, merge=4, size_px=12)(image(np.full((12, 12, 3), 255, np.uint8)))
    assert (len(square.valid), square.valid.sum(), square.tokens(4), square.tokens(1)) == (16, 9, 4, 9)


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_any_size_becomes_whole_patches_of_the_same_ratio(height: int, width: int) -> None:
    made = PatchifyImage(patch_px=8, merge=4, size_px=48)(image(np.full((height, width, 3), 255, np.uint8)))
    real = made.coords[made.valid]
    rows, columns = int(real[:, 1].max()) + 1, int(real[:, 2].max()) + 1
    assert max(rows, columns) == 6
    assert len(real) == rows * columns
    assert min(rows, columns) == max(1, round(6 * min(height, width) / max(height, width)))
    np.testing.assert_allclose(made.values[made.valid], 1, atol=1e-6)
    assert len(made.valid) % 4 == 0
    assert made.tokens(4) == len(made.valid) // 4


def test_a_picture_is_resized_as_a_whole() -> None:
    """A picture dark on its left half stays so in both halves of the grid."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    made = PatchifyImage(patch_px=8, merge=1, size_px=16)(image(pixels))
    assert made.values[:, :12].mean(1).round().tolist() == [-1, 1, -1, 1]


def test_arguments_of_pictures() -> None:
    with pytest.raises(ValueError, match="merge=3"):
        PatchifyImage(merge=3)
    with pytest.raises(ValueError, match="size_px=50"):
        PatchifyImage(size_px=50)


# --------------------------------------------------------------------------------------------------------------- sound


def reference_log_mel(wave: np.ndarray, cut: PatchifyAudio, frame: int) -> np.ndarray:
    """One frame by the definitions, in float64: a Hann window, the Fourier sum, triangles in mel, a logarithm."""
    size, fft, rate = 400, 512, 16_000
    start = frame * 160 - size // 2
    taken = np.array([wave[start + n] if 0 <= start + n < len(wave) else 0.0 for n in range(size)], dtype=np.float64)
    taken *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    k = np.arange(fft // 2 + 1)[:, None]
    power = np.abs((taken * np.exp(-2j * np.pi * k * np.arange(size) / fft)).sum(axis=1)) ** 2

    def mel(hz: float) -> float:
        return 1127.01048 * math.log(1 + hz / 700)  # the same scale, in its other usual form

    edges = np.linspace(mel(60.0), mel(rate / 2), cut.bands + 2)
    energies = []
    for band in range(cut.bands):
        low, centre, high = edges[band : band + 3]
        total = 0.0
        for line in range(fft // 2 + 1):
            place = mel(line * rate / fft)
            if low < place <= centre:
                total += power[line] * (place - low) / (centre - low)
            elif centre < place < high:
                total += power[line] * (high - place) / (high - centre)
        energies.append((math.log(max(total, 1e-6)) + 5) / 5)
    return np.array(energies)


def test_log_mel_against_its_definition() -> None:
    cut = PatchifyAudio(bands=64, patch_bands=64, frames=2)
    wave = (tone(700, 0.1) + 0.1 * np.random.default_rng(0).standard_normal(1600)).astype(np.float32)
    made = cut.log_mel(wave)
    assert made.shape == (10, 64)
    for frame in (0, 3, 9):
        np.testing.assert_allclose(made[frame], reference_log_mel(wave, cut, frame), atol=2e-4)


def test_a_tone_is_loudest_in_its_own_band() -> None:
    filters, centres = mel_filters(64, 512, 16_000)
    assert filters.shape == (257, 64)
    for hz in (200.0, 1000.0, 4000.0):
        band = PatchifyAudio().log_mel(tone(hz, 0.2))[10].argmax()
        assert abs(centres[band] - 2595 * np.log10(1 + hz / 700)) < np.diff(centres)[0]
    with pytest.raises(ValueError, match="bands=200 are too many"):
        PatchifyAudio(bands=200, patch_bands=200)


def test_patches_of_sound_are_stretches_of_time_by_groups_of_bands() -> None:
    cut = PatchifyAudio(bands=64, patch_bands=16, frames=8)
    wave = tone(500, 0.2)
    made = cut(audio(wave, start_s=3.0))
    assert made.values.shape == (3 * 4, (8 + 1) * 16)
    mel, spectrum = cut.normalised(cut.log_mel(wave))
    second = made.values[5].reshape(9, 16)  # second stretch, second group
    np.testing.assert_array_equal(second[:8], mel[8:16, 16:32])
    np.testing.assert_array_equal(second[8], spectrum[16:32] / 2)
    np.testing.assert_allclose(made.coords[:, 0], np.repeat([3.04, 3.12, 3.20], 4), atol=1e-6)
    _, centres = mel_filters(64, 512, 16_000)
    np.testing.assert_allclose(made.coords[:4, 3], centres.reshape(4, 16).mean(1) / 1000, rtol=1e-6)
    silent = made.values[8:].reshape(4, 9, 16)[:, 4:8]  # 20 frames are two and a half stretches
    np.testing.assert_array_equal(silent, FLOOR)


def test_the_clips_own_spectrum_by_hand() -> None:
    """Levels 1, 3 and -9: one loud frame, of mean 3 and deviation 1."""
    cut = PatchifyAudio(bands=32, patch_bands=32)
    frames, spectrum = cut.normalised(np.array([[0.0, 2.0], [2.0, 4.0], [-9.0, -9.0]], dtype=np.float32))
    np.testing.assert_allclose(spectrum, [2, 4])
    np.testing.assert_allclose(frames, [[-2 / 1.1, -2 / 1.1], [0, 0], [-3, -3]], rtol=1e-6)


def test_a_louder_clip_has_the_same_frames_and_another_spectrum() -> None:
    cut = PatchifyAudio(bands=32, patch_bands=32)
    mel = np.random.default_rng(0).normal(0, 1, (40, 32)).astype(np.float32)
    frames, spectrum = cut.normalised(mel)
    again, moved = cut.normalised(mel + 2)
    np.testing.assert_allclose(again, frames, atol=1e-5)
    np.testing.assert_allclose(moved, spectrum + 2, atol=1e-5)


@pytest.mark.parametrize("wave", [np.zeros(16_000), np.zeros(1), tone(440, 0.01), tone(440, 60.0)])
def test_silence_ten_milliseconds_and_a_minute(wave: np.ndarray) -> None:
    made = PatchifyAudio(max_s=2.0)(audio(wave))
    assert np.isfinite(made.values).all()
    assert 1 <= len(made.values) <= 25


def test_another_rate_is_resampled() -> None:
    cut = PatchifyAudio()
    here = cut(audio(tone(1000, 0.5)))
    there = cut(audio(tone(1000, 0.5, rate=44_100), rate_hz=44_100))
    assert here.values.shape == there.values.shape
    loud = here.values[1:-1] > 0
    np.testing.assert_allclose(there.values[1:-1][loud], here.values[1:-1][loud], atol=0.02)


def test_arguments_of_sound() -> None:
    with pytest.raises(ValueError, match="patch_bands"):
        PatchifyAudio(bands=64, patch_bands=24)


# -------------------------------------------------------------------------------------------------------------- series


def series(values: np.ndarray, **how: Any) -> Part:
    fields: dict[str, Any] = {"rate_hz": 4.0, "channels": ("n",), "units": ("1",), **how}
    return decode_part(wrist(data=npy(values.astype(np.float32)), **fields))


def test_a_ramp_is_read_between_its_measurements() -> None:
    """One value each quarter of a second, two points each half second: at 0.125 s and 0.375 s of each."""
    made = PatchifySensor(patch_s=0.5, points=2, window_s=8.0)(series(np.arange(8)[:, None], start_s=10.0))
    assert made.values.shape == (4, 1, 2, 2)
    np.testing.assert_allclose(made.values[:, 0, :, 0], [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5], [6.5, 7.0]])
    np.testing.assert_array_equal(made.values[..., 1], 1)
    np.testing.assert_allclose(made.coords, [[t, 0, 0, 0] for t in (10.25, 10.75, 11.25, 11.75)])
    assert made.valid.all()


def test_a_window_is_at_most_so_long_and_at_least_a_patch() -> None:
    cut = PatchifySensor(patch_s=0.5, points=2, window_s=1.5)
    assert len(cut(series(np.zeros((80, 1)))).values) == 3
    assert len(cut(series(np.zeros((1, 1)))).values) == 1
    assert len(cut(series(np.zeros((3, 1)))).values) == 2  # 0.75 s


def test_what_was_not_measured_is_marked_and_zero() -> None:
    values = np.ones((8, 2))
    values[3, 0] = np.nan
    made = PatchifySensor(patch_s=0.5, points=2)(series(values, channels=("a", "b"), units=("1", "1")))
    seen = made.values[..., 1].transpose(0, 2, 1).reshape(8, 2)
    assert seen[:, 0].tolist() == [1, 1, 0, 0, 1, 1, 1, 1]  # the two points beside the missing one
    assert seen[:, 1].tolist() == [1] * 8
    np.testing.assert_array_equal(made.values[..., 0], made.values[..., 1])
    assert np.isfinite(made.values).all()


def test_gaps_between_times_are_not_filled() -> None:
    times = np.array([0.0, 0.25, 0.5, 0.75, 2.0, 2.25, 2.5])
    part = series(np.ones((7, 1)), rate_hz=None, times="t.npy", times_s=npy(times))
    made = PatchifySensor(patch_s=0.5, points=2)(part)
    assert made.values[..., 1].reshape(-1).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0]


def test_a_constant_channel_and_any_rate_are_finite() -> None:
    for rate in (0.5, 3.0, 50.0, 1000.0, 44_100.0):
        made = PatchifySensor(patch_s=0.5, points=16)(series(np.full((400, 1), 3.0), rate_hz=rate))
        seen = made.values[..., 1] == 1
        assert seen.any()
        assert np.isfinite(made.values).all()
        np.testing.assert_allclose(made.values[..., 0][seen], 3.0, rtol=1e-6)


def test_a_fast_series_is_averaged_not_aliased() -> None:
    """A tone far above what the points can show vanishes; sampled point by point it would be of full height."""
    t = np.arange(8000) / 1000
    fast = np.sin(2 * np.pi * 201 * t)[:, None]
    made = PatchifySensor(patch_s=0.5, points=16)(series(fast, rate_hz=1000.0))
    assert np.abs(made.values[..., 0]).max() < 0.1
    slow = np.sin(2 * np.pi * 1.0 * t)[:, None]
    made = PatchifySensor(patch_s=0.5, points=16)(series(slow, rate_hz=1000.0))
    at = (np.arange(16 * 16) + 0.5) / 32
    np.testing.assert_allclose(made.values[..., 0].reshape(-1), np.sin(2 * np.pi * at), atol=0.12)


def test_a_channel_is_known_by_name_unit_and_place() -> None:
    cut = PatchifySensor()

    def named(**how: Any) -> tuple[int, ...]:
        made = cut(series(np.zeros((4, 1)), **how))
        assert made.channels is not None
        return tuple(made.channels[0].tolist())

    base = named(channels=("acc_x",), units=("g",), place="left wrist")
    assert named(channels=("acc_x",), units=("m/s^2",), place="left wrist") == base
    assert named(channels=("acc_y",), units=("g",), place="left wrist") != base
    assert named(channels=("acc_x",), units=("g",), place="ankle") != base
    assert named(channels=("acc_x",), units=("kPa",), place="left wrist") != base
    assert 0 <= base[0] < 2**63


def test_the_grid_of_a_tactile_array() -> None:
    part = series(np.zeros((4, 2)), channels=("p0", "p1"), units=("kPa", "kPa"), grid=((0.0, 0.0), (0.0, 1.0)))
    made = PatchifySensor()(part)
    assert made.channels is not None
    assert made.channels[1].tolist() == [[0, 0], [0, 1]]


def test_an_unknown_unit_is_skipped() -> None:
    with pytest.raises(SkipSample, match="unknown unit"):
        PatchifySensor()(series(np.zeros((4, 1)), units=("furlong",)))


# ---------------------------------------------------------------------------------------------------------------- text


def test_text_is_its_first_pieces(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("rowing the boat")
    made = PatchifyText(tokenizer, max_pieces=3)(Part(type="text", text="rowing the boat"))
    assert made.values.tolist() == ids[:3]
    assert made.coords.tolist() == [[0, 0, i, 0] for i in range(3)]


def test_dummies_are_one_valid_patch_of_zeros(tokenizer: SentencePieceTokenizer) -> None:
    cuts = {
        PatchifyImage(): (4, 192),
        PatchifyAudio(patch_bands=16): (1, 144),
        PatchifySensor(points=8): (1, 1, 8, 2),
        PatchifyText(tokenizer): (1,),
    }
    for cut, shape in cuts.items():
        made: PartPatches = cut.dummy()
        assert made.values.shape == shape
        assert made.valid.sum() == 1
        assert made.valid[0]
        assert made.tokens(cut.merge) == 1
        assert (made.channels is not None) == (cut.modality == "sensor")


def test_tokens_are_groups_with_something_valid() -> None:
    made = PartPatches(np.zeros((5, 1)), np.zeros((5, 4)), np.array([True, False, False, False, True]))
    assert [made.tokens(m) for m in (1, 2, 3, 4, 5)] == [2, 2, 2, 2, 1]
    assert dataclasses.replace(made, valid=np.ones(5, bool)).tokens(4) == 2
