"""The numbers of a set on a page and on a terminal."""

from __future__ import annotations

import io
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from html_page import assert_whole
from rich.console import Console

from mmfusion.data.stats import label_numbers, spread
from mmfusion.report import data_stats, svg

HOSTILE = "<b>[red]x[/red]"


def numbers() -> dict[str, Any]:
    cell = {"samples": 1200, "text": 1200, "audio": 3, "audio_hours": 1.25, "bytes": 2_500_000}
    return {
        "total": {**cell, "skipped": 2},
        "table": [{"split": "train", "source": HOSTILE, **cell}, {"split": "test", "source": "b", "skipped": 2}],
        "languages": {f"l{i}": 100 - i for i in range(20)},
        "skipped": {"corrupt picture": 2},
        "sizes": {"audio_s": spread(np.array([0.5, 1.0, 120.0]))},
        "labels": {HOSTILE: label_numbers({"train": Counter({HOSTILE: 11, **{str(i): 1 for i in range(39)}})})},
        "people": {},
    }  # fmt: skip


def test_the_page_holds_every_number_and_folds_long_lists() -> None:
    page = assert_whole(data_stats.page("set", {"Folder": HOSTILE}, numbers(), [f"Look at {HOSTILE}."]))
    for said in ("1,200", "1.25", "2.5", f"Look at {HOSTILE}.", "corrupt picture", "8 more", "40 values in 50 samples"):
        assert said in page.text
    assert page.text.count("l12") == 1
    bars = [attributes["style"] for attributes in page.all("span") if attributes.get("class") == "bar"]
    assert bars[:2] == ["--w:100.0%", "--w:99.0%"]


def test_the_terminal_shows_the_same() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(data_stats.terminal(numbers(), [f"Look at {HOSTILE}."]))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert re.search(r"train +<b>\[red\]x\[/red\] +1,200 +3 +1\.25 +1,200 +2\.5", shown)
    assert re.search(r"all +1,200 +3 +1\.25 +1,200 +2\.5 +2", shown)
    assert "l7 93, and 12 more" in shown
    assert f"! Look at {HOSTILE}." in shown
    assert "median 1, from 0.5 to 120" in shown


def test_a_histogram_is_as_high_as_its_counts() -> None:
    drawn = svg.histogram([0, 1, 2, 3], [10, 0, 5], title="t", x_name="px")
    heights = [float(h) for h in re.findall(r'class="bin"[^>]*height="([\d.]+)"', drawn)]
    assert heights == pytest.approx([svg.HEIGHT - svg.BOTTOM - svg.TOP, (svg.HEIGHT - svg.BOTTOM - svg.TOP) / 2])
    logarithmic = svg.histogram([1, 10, 100], [1, 1], title="t", x_name="s", log=True)
    left = [float(x) for x in re.findall(r'class="bin" x="([\d.]+)"', logarithmic)]
    assert left == pytest.approx([svg.LEFT, (svg.LEFT + svg.WIDTH - svg.RIGHT) / 2])
