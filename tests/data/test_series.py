"""Units on one scale, windows cut from series."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_media import npy, wrist

from mmfusion.data.decode import decode_part
from mmfusion.data.series import array_of, base_units, cut, length_s, scaled, times_of, windows
from mmfusion.types import Part, SkipSample


def ramp(steps: int = 100, unit: str = "1", **how: object) -> Part:
    """One channel that counts its rows, at 10 Hz."""
    fields = {"rate_hz": 10.0, "channels": ("n",), "units": (unit,), **how}
    return decode_part(wrist(data=npy(np.arange(steps)[:, None]), **fields))


@pytest.mark.parametrize(
    ("unit", "value", "base", "expected"),
    [
        ("m/s^2", 9.80665, "m/s^2", 1.0),
        ("g", 1.0, "m/s^2", 1.0),
        ("mg", 500.0, "m/s^2", 0.5),
        ("deg/s", 180.0, "rad/s", np.pi / 2),
        ("rad/s", np.pi, "rad/s", np.pi / 2),
        ("hPa", 1013.25, "kPa", 1.01325),
        ("bar", 1.0, "kPa", 1.0),
        ("degF", 212.0, "degC", 5.0),
        ("K", 373.15, "degC", 5.0),
        ("uT", 50.0, "uT", 1.0),
        ("gauss", 0.5, "uT", 1.0),
        ("%", 50.0, "%", 1.0),
    ],
)
def test_units_meet_on_one_scale(unit: str, value: float, base: str, expected: float) -> None:
    part = decode_part(wrist(data=npy(np.full((4, 1), value)), channels=("c",), units=(unit,)))
    np.testing.assert_allclose(scaled(part), expected, rtol=1e-5)
    assert base_units(part) == (base,)


def test_an_unknown_unit_is_skipped() -> None:
    for use in (scaled, base_units):
        with pytest.raises(SkipSample) as caught:
            use(ramp(unit="furlong"))
        assert caught.value.reason == "unknown unit"


def test_a_window_starts_its_own_clock() -> None:
    part = dataclasses.replace(ramp(), start_s=5.0)
    assert length_s(part) == pytest.approx(10.0)
    window = cut(part, 2.0, 3.0)
    assert array_of(window)[:, 0].tolist() == list(range(20, 50))
    np.testing.assert_allclose(times_of(window), np.arange(30) / 10, atol=1e-9)
    assert (window.start_s, length_s(window)) == (7.0, pytest.approx(3.0))


def test_windows_are_all_whole_ones() -> None:
    starts = [array_of(w)[0, 0] / 10 for w in windows(ramp(105), 4.0, 2.0)]
    assert starts == [0.0, 2.0, 4.0, 6.0]
    assert [len(array_of(w)) for w in windows(ramp(40), 4.0, 2.0)] == [40]
    assert [len(array_of(w)) for w in windows(ramp(7), 4.0, 2.0)] == [7]


def test_windows_of_uneven_times() -> None:
    times = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 5.2])
    part = ramp(6, rate_hz=None, times="t.npy", times_s=npy(times))
    cuts = list(windows(part, 2.0, 1.0))
    assert [len(array_of(w)) for w in cuts] == [3, 1, 1, 1]  # never empty, even inside the gap
    assert [round(w.start_s, 6) for w in cuts] == [0.0, 1.0, 2.0, 3.0]
