"""Plots: round ticks, gaps that stay gaps, axes that map ends to ends."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.report import svg


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.5, 1]),
        (0, 100, False, [0, 50, 100]),
        (-1.2, 1.1, False, [-1, 0, 1]),
        (0.9, 11, True, [1, 2, 5, 10]),
        (0.001, 500, True, [0.001, 0.01, 0.1, 1, 10, 100]),
        (3.1, 3.4, True, [3.1, 3.4]),
    ],
)
def test_ticks_by_hand(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert svg.ticks(low, high, log) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = svg.ticks(low, low + span)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_axis_maps_ends_to_ends() -> None:
    axis = svg.Axis(1, 100, 10, 30, log=True)
    assert axis(np.array([1, 10, 100])).tolist() == pytest.approx([10, 20, 30])
    assert svg.Axis(5, 5, 0, 1)(5) == 0


def test_a_gap_stays_a_gap() -> None:
    y = np.array([1.0, 2, np.nan, 3, 4, np.nan, 5])
    drawn = svg.curves([svg.Line("a", np.arange(7.0), y, "s1")], title="t", x_name="s")
    assert len(re.findall("<polyline", drawn)) == 2
    assert len(re.findall("<circle", drawn)) == 1  # the last point stands alone
    assert "nan" not in drawn


def test_nothing_to_draw() -> None:
    assert svg.curves([svg.Line("a", np.arange(3.0), np.full(3, np.nan), "s1")], title="t", x_name="s") == ""


def test_log_only_where_all_is_positive() -> None:
    line = svg.Line("a", np.arange(3.0), np.array([1.0, 0.0, 2.0]), "s1")
    assert "log scale" not in svg.curves([line], title="t", x_name="step", log=True)


def test_interval_places_value_and_chance() -> None:
    drawn = svg.interval(0.5, (0.25, 0.75), 0.0, {"x": 1.0}, log_to=None)
    assert 'class="value" cx="120.0"' in drawn
    assert 'class="chance" x1="6.0"' in drawn
    assert 'class="range" x="63.0" y="9" width="114.0"' in drawn
    assert 'd="M234.0 ' in drawn
    rank = svg.interval(1, None, 100, {}, log_to=10_000)
    assert 'class="value" cx="6.0"' in rank
    assert 'class="chance" x1="120.0"' in rank
    assert "range" not in rank


def test_waveform_of_silence_and_of_one_sample() -> None:
    for wave in (np.zeros(1000), np.zeros(1)):
        assert "nan" not in svg.waveform(wave, 16000, "sound")
