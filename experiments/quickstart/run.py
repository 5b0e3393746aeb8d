"""What the quickstart reaches: time, memory, every metric of the report, exact repetition, exact resume after kill -9.

    uv run python experiments/quickstart/run.py           all rows of results.json, about half an hour on two cores
    uv run python experiments/quickstart/run.py --quick   the same path with a few steps, within 180 s

The metrics are those of the first of the three full runs (all three have the same seed; F7 says whether they agree).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from experiments.processes import TRAIN, digest, killed, timed
from experiments.results import matrix_gflops, row, save

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
Rows = list[dict[str, Any]]


def full_runs(work: Path, times: int, overrides: list[str]) -> tuple[Rows, list[Path]]:
    """F1 without installation: the same run several times, one after the other."""
    seconds, peaks, folders = [], [], []
    speed = [matrix_gflops()]
    for k in range(times):
        folder = work / f"run{k}"
        took, peak = timed([*TRAIN, f"paths.run={folder}", *overrides], work / f"run{k}.log")
        print(f"run {k}: {took:.0f} s, {peak:.2f} GB", flush=True)
        seconds.append(took)
        peaks.append(peak)
        folders.append(folder)
        speed.append(matrix_gflops())
    beside = {"matrix GFLOP/s": statistics.median(speed), "fastest": min(seconds), "slowest": max(seconds)}
    rows = [
        row("F1.train", "start to report, without installation, median", statistics.median(seconds), "s",
            n=times, must="<= 240", beside=beside),
        row("F1.memory", "peak memory of all processes", max(peaks), "GB", n=times, must="<= 4"),
    ]  # fmt: skip
    return rows, folders


def fresh_clone(work: Path) -> Rows:
    """F1 with installation: a clone, an empty package cache, one command."""
    clone, log = work / "clone", work / "clone.log"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    env = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT")}
    env["UV_CACHE_DIR"] = str(work / "cache")
    took, _ = timed(["uv", "run", "mmfusion", "train"], log, cwd=clone, env=env)
    tests, _ = timed(["uv", "run", "pytest"], work / "tests.log", cwd=clone, env=env)
    passed = re.search(r"(\d+) passed", (work / "tests.log").read_text())
    shutil.rmtree(work / "cache")
    return [
        row("F1.clone", "fresh clone and package cache to report, with installation", took, "s", n=1, must="<= 360"),
        row("F9", "fast tests after installation", tests, "s", n=int(passed[1]) if passed else 0, must="<= 240"),
    ]


# The table's bars: (id, task, pattern of the metric, must, what is compared: the value or its interval's lower bound).
BARS = (
    ("F2", "picture_to_name", "R@1", ">= 0.30", "value"),
    ("F3", "spoken_to_picture", r"R@5 of \d+, seen things", "> chance", "low"),
    ("F4.sound", "sound_kind", "accuracy", "> chance", "low"),
    ("F4.watch", "watch_exercise", "accuracy", "> chance", "low"),
)


def metric_rows(folder: Path) -> Rows:
    """F2 to F6: the barred metrics under their id, all others of F5 and F6 as they are."""
    rows = []
    shown = {"unseen_concepts": "F5", "captions": "F6", "by_modality": "F3.subset", "picture_to_name": "F2",
             "spoken_to_picture": "F3", "sound_kind": "F4.sound", "watch_exercise": "F4.watch"}  # fmt: skip
    for metric in json.loads((folder / "metrics.json").read_text()):
        task, name = metric["task"], metric["metric"]
        barred = [bar for bar in BARS if bar[1] == task and re.fullmatch(bar[2], name)]
        id, _, _, must, compared = barred[0] if barred else (f"{shown[task]}.{name}", task, name, None, "value")
        if must == "> chance":
            must = f"> {metric['chance']:.6f}"
        beside = {"chance": metric["chance"], **metric["baselines"]}
        judged = metric["ci95"][0] if compared == "low" else None
        rows.append(row(id, f"{task}: {name}", metric["value"], "", n=metric["n"], must=must, judged=judged,
                        ci95=metric["ci95"], beside=beside))  # fmt: skip
    if missing := {bar[0] for bar in BARS} - {one["id"] for one in rows}:
        raise SystemExit(f"{folder}: no metric for {', '.join(sorted(missing))}")
    return rows


def same_twice(folders: list[Path]) -> dict[str, Any]:
    """F7: runs with one seed, metrics and weights byte for byte."""
    found = {digest(f / "metrics.json") + digest(f / "checkpoint" / "model.safetensors") for f in folders}
    return row(
        "F7", "runs of one seed with different metrics or weights", len(found) - 1, "runs", n=len(folders), must="== 0"
    )


def plot(rows: Rows, path: Path) -> None:
    """The barred metrics: value and interval in black, chance as a grey line, baselines as named blue marks."""
    barred = [r for r in rows if r["id"] in {bar[0] for bar in BARS}]
    width, left, line = 1000, 340, 64
    body = []
    for i, one in enumerate(barred):
        y = 40 + i * line

        def x(value: float) -> float:
            return left + value * (width - left - 40)

        low, high = one["ci95"] or (one["value"], one["value"])
        body.append(f'<text x="10" y="{y + 5}">{one["what"]}</text>')
        body.append(f'<path d="M{left} {y}H{width - 40}" stroke="#ddd"/>')
        body.append(f'<path d="M{x(low):.1f} {y}H{x(high):.1f}" stroke="#111" stroke-width="4"/>')
        body.append(f'<circle cx="{x(one["value"]):.1f}" cy="{y}" r="6"/>')
        for k, (name, value) in enumerate(one["beside"].items()):
            colour = "#888" if name == "chance" else "#0b5fa5"
            body.append(f'<path d="M{x(value):.1f} {y - 10}V{y + 10}" stroke="{colour}" stroke-width="2"/>')
            side, apart = ("start", 4) if value < 0.6 else ("end", -4)  # so that the text stays inside
            place = f'x="{x(value) + apart:.1f}" y="{y - 12 if k % 2 else y + 24}" text-anchor="{side}"'
            body.append(f'<text {place} font-size="12" fill="{colour}">{name} {value:.3f}</text>')
    size = f"0 0 {width} {40 + line * len(barred)}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif">'
    path.write_text(f'{head}<rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one run, one kill; writes results.quick.json")
    parser.add_argument("--keep", type=Path, help="keep the runs and logs in this folder")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="mmfusion-quickstart-"))
    work.mkdir(parents=True, exist_ok=True)
    if options.quick:
        rows, folders = full_runs(work, 1, ["steps=30"])
        rows += [*metric_rows(folders[0]), killed("F8", work, 1, 20)]
    else:
        rows, folders = full_runs(work, 3, [])
        rows += [*metric_rows(folders[0]), same_twice(folders), killed("F8", work, 5, 60), *fresh_clone(work)]
    plot(rows, HERE / ("results.quick.svg" if options.quick else "results.svg"))
    name = "results.quick.json" if options.quick else "results.json"
    save(HERE / name, rows, f"uv run python experiments/quickstart/run.py{' --quick' if options.quick else ''}")
    if not options.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
