"""Series files: names, units and times from a header or from what the caller says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_media import npy
from tiny_sources import put, wave_npy

from mmfusion.data.decode import decode_part
from mmfusion.data.media import npy_array
from mmfusion.data.pack.check import sample_of
from mmfusion.data.pack.draft import Draft
from mmfusion.data.pack.media import file_piece
from mmfusion.types import Part, SkipSample


def read(path: Path, tag: str = "", **known: Any) -> Part:
    return file_piece(path, Part(type="sensor", **known), name=path.name, tag=tag).read()


def test_a_header_names_channels_units_and_times(tmp_path: Path) -> None:
    text = "timestamp (ms), acc_x (m/s²) ,gyro[deg/s],steps [1]\n1000,1.5,2,3\n1020,,4,5\n1050,nan,6,7\n"
    part = read(put(tmp_path / "w.csv", text), tag="left")
    assert (part.file, part.times) == ("left.npy", "left.times.npy")
    assert (part.channels, part.units) == (("acc_x", "gyro", "steps"), ("m/s^2", "deg/s", "1"))
    assert part.start_s == 1.0
    decoded = decode_part(part)
    assert isinstance(decoded.data, np.ndarray)
    np.testing.assert_array_equal(decoded.data, np.array([[1.5, 2, 3], [np.nan, 4, 5], [np.nan, 6, 7]], np.float32))
    assert isinstance(decoded.times_s, np.ndarray)
    np.testing.assert_allclose(decoded.times_s, [0, 0.02, 0.05])
    assert isinstance(part.data, bytes)
    assert isinstance(part.times_s, bytes)
    assert npy_array(part.data).dtype == np.float32
    assert npy_array(part.times_s).dtype == np.float64


def test_dates_are_times_and_the_sample_begins_with_the_first(tmp_path: Path) -> None:
    text = "time,a (1)\n2024-03-01 10:00:{:06.3f},1\n2024-03-01 10:00:{:06.3f},2\n"
    parts = [read(put(tmp_path / f"{i}.csv", text.format(i + 0.25, i + 0.75))) for i in (3, 5)]
    assert parts[0].start_s == pytest.approx(1709287203.25)
    draft = Draft(row=1, key="k", pieces=lambda: ())
    assert [part.start_s for part in sample_of(draft, "k", parts).parts] == [0.0, 2.0]
    times = decode_part(parts[1]).times_s
    assert isinstance(times, np.ndarray)
    np.testing.assert_allclose(times, [0, 0.5], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "int16", "float16"])
def test_an_npy_gets_its_names_from_what_is_known(tmp_path: Path, dtype: str) -> None:
    values = np.arange(12).reshape(6, 2).astype(dtype)
    part = read(put(tmp_path / "w.npy", npy(values)), channels=("a", "b"), units=("kPa",), rate_hz=10.0)
    assert (part.units, part.rate_hz, part.times) == (("kPa", "kPa"), 10.0, None)
    assert isinstance(part.data, bytes)
    np.testing.assert_array_equal(npy_array(part.data), values.astype(np.float32))


def test_one_dimension_is_one_channel_and_columns_can_be_chosen(tmp_path: Path) -> None:
    assert read(put(tmp_path / "w.npy", npy(np.zeros(5))), channels=("a",), units=("1",), rate_hz=1.0).units == ("1",)
    text = put(tmp_path / "w.tsv", "a (g)\tb (g)\tc\n1\t2\t0\n3\t4\t0\n")
    part = read(text, channels=("b",), rate_hz=5.0)
    assert isinstance(part.data, bytes)
    np.testing.assert_array_equal(npy_array(part.data), [[2], [4]])


def test_units_for_all_make_no_channel_of_clocks_and_row_numbers(tmp_path: Path) -> None:
    text = "Unnamed: 0,index,id,,seconds,elapsed_ms,a,b (g)\n0,0,x1,0,0,0,1,2\n1,1,x1,1,0.5,500,3,4\n"
    part = read(put(tmp_path / "w.csv", text), units=("m/s^2",))
    assert (part.channels, part.units) == (("a", "b"), ("m/s^2", "g"))
    times = decode_part(part).times_s
    assert isinstance(times, np.ndarray)
    np.testing.assert_allclose(times, [0, 0.5])
    assert read(tmp_path / "w.csv", units=("1",), channels=("index", "b")).channels == ("index", "b")


@pytest.mark.parametrize(
    ("name", "data", "known", "message"),
    [
        ("w.csv", "a (g),b (g)\n1,2\n", {}, "no times.*--rate-hz"),
        ("w.csv", "t,a,b (g)\n1,2,3\n", {}, r"no unit.*of a; give --units.*--channels.*m/s\^2"),
        ("w.csv", "t,a (furlong)\n1,2\n", {}, r"unknown unit.*'furlong'; known are m/s\^2, g"),
        ("w.csv", "time [weeks],a (g)\n1,2\n", {}, "bad csv.*times in 'weeks'; give them in s"),
        ("w.csv", "t,a (g)\n1,2,3\n", {}, "bad csv.*3 cells for 2 columns"),
        ("w.csv", "t,a (g),a (g)\n1,2,3\n", {}, "bad csv.*two columns are named 'a'"),
        ("w.csv", "0.1,0.2\n0.3,0.4\n", {}, "bad csv.*names no columns"),
        ("w.csv", "", {}, "bad csv"),
        ("w.csv", "t\n1\n", {}, "bad csv.*1 rows of 0 channels"),
        ("w.csv", "t,a (g)\n1,walk\n", {}, "bad csv.*column 'a': 'walk' is no number"),
        ("w.csv", "t,a (g)\n1,2\n", {"channels": ("z",)}, "no column 'z', only t, a"),
        ("w.npy", wave_npy(5, 2), {"units": ("g",), "rate_hz": 1.0}, "no channel names for 2 channels.*--channels"),
        ("w.npy", wave_npy(5, 2), {"channels": ("a",), "rate_hz": 1.0}, "1 channel names for 2 channels"),
        ("w.npy", wave_npy(5, 2), {"channels": ("a", "b"), "units": ("g",) * 3}, "3 units for 2 channels"),
        ("w.npy", npy(np.array([{}])), {}, "only numbers are read"),
        ("w.npy", npy(np.zeros((2, 2, 2))), {}, r"an array \[2, 2, 2\]; it must be \[time, channel\]"),
        ("w.npy", "no npy", {}, "bad npy"),
    ],
)
def test_a_series_that_says_too_little_is_told_what_to_add(
    tmp_path: Path, name: str, data: str | bytes, known: dict[str, Any], message: str
) -> None:
    with pytest.raises(SkipSample, match=message):
        read(put(tmp_path / name, data), **known)
