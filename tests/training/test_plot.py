"""Lines drawn for loggers."""

from __future__ import annotations

import numpy as np

from mmfusion.training import plot
from mmfusion.training.plot import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from mmfusion.types import Part


def part(values: np.ndarray, **how: object) -> Part:
    count = values.shape[1]
    names, units = tuple(f"acc_{i}" for i in range(count)), ("g",) * count
    times = np.arange(len(values)) / 50
    return Part(type="sensor", file="npy", rate_hz=50, channels=names, units=units, data=values, times_s=times)


def inked(image: np.ndarray, colour: str) -> np.ndarray:
    """Where a pixel of the frame's inside is of this colour, [row, column]."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(image.astype(int) - wanted).sum(axis=2) < 60
    near[: TOP + 2] = near[BOTTOM - 1 :] = False
    near[:, : LEFT + 2] = near[:, RIGHT - 1 :] = False
    return near


def test_a_rising_line_rises_over_the_whole_frame() -> None:
    image = plot.series(part(np.linspace(-1, 1, 100, dtype=np.float32)[:, None]))
    assert image.shape == (HEIGHT, WIDTH, 3)
    rows, columns = np.nonzero(inked(image, COLOURS[0]))
    assert np.corrcoef(rows, columns)[0, 1] < -0.99
    assert columns.max() - columns.min() > 0.9 * (RIGHT - LEFT)


def test_what_was_not_measured_is_a_gap() -> None:
    values = np.zeros((100, 2), np.float32)
    values[:, 1] = 1
    values[40:60, 0] = np.nan
    columns = np.nonzero(
        inked(plot.series(part(values + 0.5 * np.sin(np.arange(100))[:, None])), COLOURS[0]).any(axis=0)
    )[0]
    middle = (LEFT + RIGHT) / 2
    assert not ((columns > middle - 40) & (columns < middle + 40)).any()
    assert (columns < middle - 60).any()
    assert (columns > middle + 60).any()


def test_nothing_measured_one_value_and_many_channels_are_drawn() -> None:
    for values in (np.full((5, 1), np.nan), np.zeros((1, 1)), np.random.default_rng(0).normal(size=(50, 40))):
        assert plot.series(part(values.astype(np.float32))).shape == (HEIGHT, WIDTH, 3)


def test_a_mark_stands_where_it_should() -> None:
    x, y = np.array([-5.0, -3.0, -1.0]), np.array([[1.0], [0.0], [1.0]])
    marked, plain = (
        plot.lines(x, y, names=["loss"], unit="", ends=("a", "b"), mark=mark).astype(int) for mark in (-2.0, None)
    )
    rows, columns = np.nonzero(np.abs(marked - plain).sum(axis=2) > 30)
    assert abs(columns.mean() - (LEFT + 0.75 * (RIGHT - LEFT))) < 1.5
    assert rows.max() - rows.min() > 0.9 * (BOTTOM - TOP)
