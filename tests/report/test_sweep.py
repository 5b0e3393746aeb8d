"""sweep.html: every trial is on it, nothing is fetched, and places are right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmfusion.report import sweep as page
from mmfusion.report import terminal
from mmfusion.sweep.result import Result, State, Tried
from mmfusion.sweep.space import Sweep

SPACE: dict[str, Any] = {
    "optim.lr": {"kind": "float", "low": 0.001, "high": 0.1, "log": True},
    "model.depth": {"kind": "int", "low": 1, "high": 4},
    "optim.betas": {"kind": "choice", "values": [[0.9, 0.98], "a<b>"]},
}


def tried(number: int, state: State, value: float | None, lr: float, depth: int, betas: Any) -> Tried:
    values = {"optim.lr": lr, "model.depth": depth, "optim.betas": betas}
    sd = 0.25 if state == "done" else None
    message = "<script>no</script>" if state == "failed" else ""
    return Tried(number, state, values, value, sd, 3, 8, 61.0, message, Path("t"))


def result(midway: float = 5.0, **changed: Any) -> Result:
    told = {"metric": "val/loss", "trials": 4, "repeats": 3, "space": SPACE, **changed}
    trials = [
        tried(0, "done", 4.0, 0.001, 1, "a<b>"),
        tried(1, "done", 2.0, 0.1, 4, [0.9, 0.98]),
        tried(2, "pruned", midway, 0.01, 2, "a<b>"),
        tried(3, "failed", None, 0.01, 3, "a<b>"),
        tried(4, "done", 3.0, 0.01, 2, [0.9, 0.98]),
    ]
    return Result(
        "mine", Sweep.model_validate(told), Path("sweeps/mine"), trials, {"optim.lr": 0.75, "model.depth": 0.25}
    )


def written(found: Result, folder: Path) -> str:
    page.write(folder / "sweep.html", found, "mmfusion train experiment=mine-best")
    return (folder / "sweep.html").read_text()


def test_the_page_holds_all_of_it_and_fetches_nothing(tmp_path: Path) -> None:
    text = written(result(), tmp_path)
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|<script", text)
    rows = re.findall(r'<th scope="row">(\d+)</th>', text)
    assert rows == ["1", "4", "0", "2", "3"]  # the best first
    assert '2</strong> <span class="bounds">sd 0.25 over 3 seeds' in text
    assert "&lt;script&gt;no&lt;/script&gt;" in text
    assert "mmfusion train experiment=mine-best" in text
    assert text.count('<polyline class="way') == 4  # of all that have a value
    assert 'class="way q5 best"' in text
    assert len(text) < 100_000  # Optuna's own would be 4 MB


def test_a_line_passes_where_its_values_are() -> None:
    """Trial 0: lr at the low end, depth 1 of 4, the lower choice; trial 1: at the high end; the best loss on top."""
    drawn = str(page.parallel(result()))
    ways = {}
    for points, told in re.findall(r'points="([^"]+)"><title>(trial \d)', drawn):
        ways[told] = [float(point.split(",")[1]) for point in points.split()]
    bottom, top = page.HEIGHT - page.BOTTOM, page.TOP
    assert ways["trial 0"][0] == pytest.approx(bottom)
    assert ways["trial 1"][0] == pytest.approx(top)
    assert ways["trial 4"][0] == pytest.approx((bottom + top) / 2, abs=0.1)  # 0.01 is midway on a log scale
    assert ways["trial 1"][3] == pytest.approx(top)
    assert ways["trial 0"][3] > ways["trial 4"][3] > ways["trial 1"][3]
    depth = bottom - (bottom - top) * 0.125  # the middle of the first of four places
    assert ways["trial 0"][1] == pytest.approx(depth, abs=0.1)


def test_where_more_is_better_the_most_is_on_top() -> None:
    drawn = str(page.parallel(result(1.0, direction="maximize")))
    (points,) = re.findall(r'class="way q5 best" points="([^"]+)"><title>trial 0', drawn)
    assert float(points.split()[-1].split(",")[1]) == pytest.approx(page.TOP)


def test_a_sweep_of_which_nothing_came_has_a_page_too(tmp_path: Path) -> None:
    found = result()
    alone = Result(found.name, found.sweep, found.folder, [found.tried[3]], {})
    text = written(alone, tmp_path)
    assert "1 failed" in text
    assert "<polyline" not in text
    assert "The best" not in text


def test_the_terminal_has_spread_and_n_beside_each_value(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show(terminal.tried(result()))
    terminal.show(terminal.importance(result()))
    lines = capsys.readouterr().out.splitlines()
    best = next(line for line in lines if line.strip().startswith("1 "))
    assert best.split()[:5] == ["1", "done", "2", "0.25", "3"]
    assert any(line.split()[:2] == ["optim.lr", "0.75"] for line in lines)
