"""Sensor series: units on one scale, and windows cut from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from mmfusion.types import Part, SkipSample

G = 9.80665  # m/s^2
_DEGREE = float(np.pi / 180)

UNITS: Mapping[str, tuple[str, float, float, float]] = {
    # unit: (unit that it is turned into, factor, offset, size of a usual value in that unit)
    "m/s^2": ("m/s^2", 1.0, 0.0, G),
    "g": ("m/s^2", G, 0.0, G),
    "mg": ("m/s^2", G / 1000, 0.0, G),
    "rad/s": ("rad/s", 1.0, 0.0, 2.0),
    "deg/s": ("rad/s", _DEGREE, 0.0, 2.0),
    "rad": ("rad", 1.0, 0.0, 1.0),
    "deg": ("rad", _DEGREE, 0.0, 1.0),
    "uT": ("uT", 1.0, 0.0, 50.0),
    "gauss": ("uT", 100.0, 0.0, 50.0),
    "m": ("m", 1.0, 0.0, 1.0),
    "cm": ("m", 0.01, 0.0, 1.0),
    "mm": ("m", 0.001, 0.0, 1.0),
    "m/s": ("m/s", 1.0, 0.0, 5.0),
    "km/h": ("m/s", 1 / 3.6, 0.0, 5.0),
    "Pa": ("kPa", 0.001, 0.0, 100.0),
    "hPa": ("kPa", 0.1, 0.0, 100.0),
    "mbar": ("kPa", 0.1, 0.0, 100.0),
    "kPa": ("kPa", 1.0, 0.0, 100.0),
    "bar": ("kPa", 100.0, 0.0, 100.0),
    "degC": ("degC", 1.0, 0.0, 20.0),
    "degF": ("degC", 5 / 9, -160 / 9, 20.0),
    "K": ("degC", 1.0, -273.15, 20.0),
    "%": ("%", 1.0, 0.0, 50.0),
    "lux": ("lux", 1.0, 0.0, 500.0),
    "N": ("N", 1.0, 0.0, 10.0),
    "V": ("V", 1.0, 0.0, 1.0),
    "mV": ("V", 0.001, 0.0, 1.0),
    "A": ("A", 1.0, 0.0, 1.0),
    "mA": ("A", 0.001, 0.0, 1.0),
    "W": ("W", 1.0, 0.0, 100.0),
    "Hz": ("Hz", 1.0, 0.0, 100.0),
    "bpm": ("bpm", 1.0, 0.0, 100.0),
    "1": ("1", 1.0, 0.0, 1.0),
}
"""The units that are understood; `1` is for numbers without one."""


def scaled(part: Part) -> np.ndarray:
    """A decoded part's series [T, C] in multiples of a usual value, so that all channels are of order one.

    Raises SkipSample for a unit that is not in UNITS: guessing would mix scales.
    """
    series = array_of(part)
    rules = [_rule(unit) for unit in part.units]
    factor = np.array([f / size for _, f, _, size in rules], dtype=np.float32)
    offset = np.array([o / size for _, _, o, size in rules], dtype=np.float32)
    return series * factor + offset


def base_units(part: Part) -> tuple[str, ...]:
    """The unit of each channel after `scaled`, up to the size of a usual value. Raises SkipSample as it does."""
    return tuple(_rule(unit)[0] for unit in part.units)


def _rule(unit: str) -> tuple[str, float, float, float]:
    if unit not in UNITS:
        raise SkipSample("unknown unit", f"{unit!r}; known are {', '.join(UNITS)}")
    return UNITS[unit]


def array_of(part: Part) -> np.ndarray:
    """A decoded part's array."""
    if not isinstance(part.data, np.ndarray):
        raise TypeError(f"{part.file}: is not decoded")
    return part.data


def times_of(part: Part) -> np.ndarray:
    """A decoded series' times, float64 [T] seconds after start_s."""
    if not isinstance(part.times_s, np.ndarray):
        raise TypeError(f"{part.file}: is not decoded")
    return part.times_s


def step_s(part: Part) -> float:
    """The usual time between two measurements of a decoded series; 1 where there is only one and no rate."""
    if part.rate_hz is not None:
        return 1 / part.rate_hz
    times = times_of(part)
    return float(np.median(np.diff(times))) if len(times) > 1 else 1.0


def length_s(part: Part) -> float:
    """How long a decoded series is, the last measurement's own step included."""
    times = times_of(part)
    return float(times[-1] - times[0]) + step_s(part)


def cut(part: Part, start_s: float, window_s: float) -> Part:
    """The stretch [start_s, start_s + window_s) of a decoded series, counted from its first measurement.

    Its clock starts anew: `times_s` begins near 0 and `start_s` moves on. Never empty.
    """
    times = times_of(part)
    begin = times[0] + start_s
    first, last = np.searchsorted(times, [begin, begin + window_s])
    first = min(int(first), len(times) - 1)
    last = max(int(last), first + 1)
    return dataclasses.replace(
        part,
        start_s=part.start_s + float(begin),
        data=array_of(part)[first:last],
        times_s=times[first:last] - begin,
    )


def windows(part: Part, window_s: float, stride_s: float) -> Iterator[Part]:
    """All whole windows of a decoded series, one every `stride_s`; the series itself where it is shorter than one."""
    spare = length_s(part) - window_s
    for k in range(int(spare / stride_s + 1e-9) + 1 if spare > 0 else 1):
        yield cut(part, k * stride_s, window_s)
