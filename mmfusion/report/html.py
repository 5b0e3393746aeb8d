"""report.html: one file that opens without a network, made of a run folder and an evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from mmfusion import runs
from mmfusion.checkpoint.layout import bytes_of
from mmfusion.errors import UserError
from mmfusion.evaluation.measure import Evaluation, Row
from mmfusion.report import curves, svg
from mmfusion.report.examples import Answered, Example, share_right
from mmfusion.runs.energy import Energy
from mmfusion.runs.energy import facts as facts_of_energy
from mmfusion.runs.energy import sources as sources_of_energy

Card = TypeVar("Card", Example, Answered)


class PageError(UserError):
    """A page that cannot be written."""


def write(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    history: Path,
    evaluation: Evaluation,
    examples: Sequence[Example],
    counts: Mapping[str, str],
    earlier: Sequence[Row] = (),
    answers: Sequence[Answered] = (),
    energy: Energy | None = None,
) -> None:
    """Write the report, whole or not at all.

    `facts` (run, commit, machine, time, steps, …) and `counts` (skipped, masked, …) are shown as they are, in their
    order; `history` is the metrics.csv of the run, with a `step` column. `earlier` are rows of
    `mmfusion.evaluation.comparison` of the checkpoints `before` and `after`, each with its `stage`; `energy` is what
    the run has spent.
    """
    spent = energy or Energy()
    page = environment().get_template("report.html.j2").render(
        title=title,
        facts=facts,
        evaluation=evaluation,
        tasks=tasks(evaluation.metrics),
        subsets=subsets(evaluation.metrics),
        cards=by_task(examples),
        right=share_right(examples),
        shown=len(examples),
        answered=by_task(answers),
        curves=curves.plots(history),
        counts=counts,
        earlier=before_and_after(earlier),
        energy=spent,
        joules=facts_of_energy(spent),
        sources=sources_of_energy(spent),
    )  # fmt: skip
    runs.write(path, page)


def writable(path: Path) -> Path:
    """`path` if a page can be put there. Raises PageError: before hours of reading, not after."""
    folder = path.absolute().parent
    if not folder.is_dir() or path.is_dir() or not os.access(folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written to"
        raise PageError(f"{path}: no page can be put there ({reason}); choose another with --out FILE")
    return path


def save(path: Path, page: str) -> str:
    """Write a page, whole or not at all, and return its address for a browser."""
    runs.write(path, page)
    return path.resolve().as_uri()


def environment(html: bool = True) -> jinja2.Environment:
    """Where the templates of this folder are found; what comes from data is escaped in HTML."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("mmfusion.report", "."),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters.update(words=words, value=value, bounds=bounds, drawn=drawn, direction=direction, cosine=cosine)
    return found


# ------------------------------------------------------------------------------------------------------------ numbers


def words(name: str) -> str:
    """`picture_to_name` as a heading: Picture to name."""
    plain = name.replace("_", " ")
    return plain[:1].upper() + plain[1:]


def is_rank(metric: str) -> bool:
    return "rank" in metric


def value(number: float, metric: str, signed: bool = False) -> str:
    """A number as its metric is read: ranks as they are, all else per cent; two digits where one would read as none."""
    if is_rank(metric):
        return f"{number:+.0f}" if signed else f"{number:.0f}" if number >= 10 else f"{number:.1f}".removesuffix(".0")
    digits = 0 if number == 0 else 2 if abs(number) < 0.0095 else 1
    return f"{100 * number:{'+' if signed else ''}.{digits}f}".replace("-", "\u2212") + "\u202f%"


def bounds(ci95: Sequence[float] | None, metric: str, signed: bool = False) -> str:
    """An interval in words; one cluster has none."""
    return "no interval" if ci95 is None else f"{value(ci95[0], metric, signed)} to {value(ci95[1], metric, signed)}"


def cosine(score: float) -> str:
    return f"{score:.2f}".replace("-", "\u2212")


def drawn(row: Row) -> Markup:
    log_to = 2 * float(row["chance"]) if is_rank(row["metric"]) else None
    return svg.interval(row["value"], row["ci95"], row["chance"], row["baselines"], log_to=log_to)


def direction(row: Row) -> str:
    """Above, below or at chance, in words; for ranks lower is better."""
    if row["ci95"] is None:
        return "undecided"
    low, high = row["ci95"]
    better, worse = low > row["chance"], high < row["chance"]
    if is_rank(row["metric"]):
        better, worse = worse, better
    return "better than chance" if better else "worse than chance" if worse else "not told from chance"


def tasks(metrics: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each task, in their order, without those of one subset of modalities."""
    found: dict[str, list[Row]] = {}
    for row in metrics:
        if "subset" not in row:
            found.setdefault(row["task"], []).append(row)
    return found


def by_task(cards: Sequence[Card]) -> dict[str, list[Card]]:
    """The cards of each task, in their order."""
    found: dict[str, list[Card]] = {}
    for card in cards:
        found.setdefault(card.task, []).append(card)
    return found


def before_and_after(rows: Sequence[Row]) -> dict[str, list[tuple[Row, Row]]]:
    """By stage and task, the rows `before` and `after` that are of one metric, in their order."""
    before = {(row["stage"], row["task"], row["metric"]): row for row in rows if row["checkpoint"] == "before"}
    found: dict[str, list[tuple[Row, Row]]] = {}
    for row in rows:
        which = row["stage"], row["task"], row["metric"]
        if row["checkpoint"] == "after" and which in before:
            found.setdefault(f"{row['stage']}: {row['task']}", []).append((before[which], row))
    return found


def subsets(metrics: Sequence[Row]) -> dict[str, tuple[list[str], list[Row]]]:
    """For each task that was asked with several subsets: the modalities and the rows."""
    found: dict[str, list[Row]] = {}
    for row in metrics:
        if "subset" in row:
            found.setdefault(row["task"], []).append(row)
    return {task: (list(dict.fromkeys(m for row in rows for m in row["subset"])), rows) for task, rows in found.items()}


def _checkpoint(folder: Path) -> dict[str, str]:
    """How large a checkpoint is, and what its weights are."""
    if not (folder / "lineage.json").is_file():
        return {}
    rounded = json.loads((folder / "lineage.json").read_bytes()).get("quantized")
    weights = f"integers ({rounded['scheme']}), {rounded['how']}" if rounded else "in full"
    return {"Checkpoint": f"{bytes_of(folder) / 1e6:.2f} MB, weights {weights}"}


def facts_of(run: Path, *, steps: int, seconds: Mapping[str, float]) -> dict[str, str]:
    """The report's head from a run folder's environment.json: what ran, where, on which code, for how long."""
    path = run / "environment.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    packages = known.get("packages", {})
    return {
        "Run": f"{run.parent.name}/{run.name}",
        "Command": known.get("command", "unknown"),
        "Commit": known.get("commit") or "no checkout",
        "Machine": f"{known.get('processor', 'unknown')}, {known.get('cores', '?')} cores",
        "Started": known.get("started", "unknown"),
        "Steps": f"{steps:,}",
        "Time": ", ".join(f"{what} {spent:.0f} s" for what, spent in seconds.items()),
        **_checkpoint(run / "checkpoint"),
        "Versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
