"""compare.html: one closed page; every run's letter beside its line and its values."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from mmfusion.report import compare, svg
from mmfusion.runs.comparison import compare as compared
from tests.runs.tiny_runs import make, measured


@pytest.fixture
def page(tmp_path: Path) -> str:
    rows = [measured(0.2, (0.1, 0.3)), measured(5.0, (3.0, 9.0), metric="median rank")]
    folders = [
        make(tmp_path / "<b>a</b>", losses=[3.0, 2.0, 1.0], metrics=rows),
        make(tmp_path / "b", losses=[3.5, 2.5], metrics=rows[:1], config={"optim": {"lr": 0.5}}),
    ]
    compare.write(tmp_path / "compare.html", compared(folders))
    assert not list(tmp_path.glob(".*"))
    return (tmp_path / "compare.html").read_text()


def test_the_page_fetches_nothing_and_escapes_names(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "<script" not in page
    assert "<b>a</b>" not in page
    assert "&lt;b&gt;a&lt;/b&gt;" in page


def test_the_page_holds_differences_curves_and_intervals(page: str) -> None:
    assert "<code>optim.lr</code>" in page
    assert "<code>0.5</code>" in page
    assert page.count('class="line s1" points') >= 1
    assert page.count('class="line s2" points') >= 1
    assert "20.0\u202f%" in page
    assert "10.0\u202f% to 30.0\u202f%" in page
    assert page.count('class="range"') >= 3
    assert page.count('class="value" cx') == 1 + 3  # the legend; one run has no median rank
    assert "are unpaired" in page


def test_names_at_line_ends_keep_apart_and_inside() -> None:
    lines = [svg.Line(letter, np.arange(3.0), np.full(3, 1.0), f"s{i + 1}") for i, letter in enumerate("ABCDEF")]
    drawn = svg.curves(lines, title="t", x_name="step", named=True)
    heights = [float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert len(heights) == 6
    assert all(b - a >= svg.LETTER for a, b in itertools.pairwise(heights))
    assert heights[-1] <= svg.HEIGHT - svg.BOTTOM + 4


def test_each_of_six_lines_has_its_own_dashes() -> None:
    css = (Path(compare.__file__).parent / "report.css").read_text()
    dashes = [re.search(rf"\.s{n}\.line {{[^}}]*?(stroke-dasharray: [^;]+|}})", css) for n in range(1, 7)]
    assert len({found[1] for found in dashes if found}) == 6
