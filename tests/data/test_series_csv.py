"""CSV tables of series: names, units and times by hand, and what each fault is called."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.data.series_csv import read_series
from mmfusion.types import DataError


def test_names_units_times_and_holes() -> None:
    table = read_series("\ufefftime_ms,acc_x (m/s^2),°C [degC],n\r\n1000,1.5,21,0\r\n\r\n1020,,22.5,nan\r\n".encode())
    assert table.names == ("acc_x", "°C", "n")
    assert table.units == ("m/s^2", "degC", "")
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, np.array([[1.5, 21, 0], [np.nan, 22.5, np.nan]], np.float32))
    assert table.times is not None
    assert table.times.dtype == np.float64
    np.testing.assert_allclose(table.times, [0, 0.02])


@pytest.mark.parametrize("parted", [",", ";", "\t"])
def test_a_quoted_name_may_hold_what_parts_the_cells(parted: str) -> None:
    table = read_series(f'"a{parted} b (g)"{parted}c (g)\n1{parted}2\n3{parted}4'.encode())
    assert table.names == (f"a{parted} b", "c")
    assert table.times is None
    assert table.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("header", "times"),
    [("t", [0, 2]), ("Time (s)", [0, 2]), ("timestamp [us]", [0, 2e-6]), ("TIME_NS", [0, 2e-9]), ("t [µs]", [0, 2e-6])],
)
def test_times_are_seconds_from_the_first_row_on(header: str, times: list[float]) -> None:
    made = read_series(f"x (g),{header}\n0,1700000000\n0,1700000002\n".encode()).times
    assert made is not None
    np.testing.assert_allclose(made, times, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a (g),b (g)\n1,2\n1,2,3\n", "line 3: 3 cells for 2 columns"),
        (b"a (g),b (g)\n1,left\n", "line 2, column 'b': 'left' is no number"),
        (b"a (g);b (g)\n1;1,5\n", "line 2, column 'b': '1,5' is no number"),
        (b"t,b (g)\n1,2\n,2\n", "line 3, column 't': '' is no time"),
        (b"t (min),b (g)\n1,2\n", "line 1, column 't': times in 'min'"),
        (b"a (g),a (mg)\n1,2\n", "line 1: two columns are named 'a'"),
        (b"t,a (g)\n1700000000000,2\n", "line 2, column 't': 1700000000000 looks like milliseconds .*t_ms, t_us or"),
        (b"timestamp,a (g)\n1.7e15,2\n", "looks like microseconds since 1970; name the column timestamp_ms, "),
        (b"time,a (g)\n1700000000000000000,2\n", "looks like nanoseconds since 1970"),
        (b"1.5,-2e3\n1,2\n", "line 1: .* names no columns"),
        (b"a (g)\n", "0 rows of 1 channels"),
        (b"t\n1\n", "1 rows of 0 channels"),
        (b"", "0 rows of 0 channels"),
        (b"\x89PNG\r\n\x1a\n", "byte 0 is not UTF-8"),
        (b"a (g)\n" + b"1" * 200_000 + b"\n", "line 2: no CSV table"),
    ],
)
def test_faults_name_line_and_column(text: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_series(text)
    assert "\n" not in str(caught.value)
