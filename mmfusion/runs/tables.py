"""Runs on a terminal: all of them, the best, one."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmfusion.runs import energy, words
from mmfusion.runs.listing import Run
from mmfusion.runs.resume import resume_points
from mmfusion.runs.status import LIVE

WIDE = 120  # columns of a terminal that everything has room in
Column = tuple[str, Callable[[Run], str]]


def table(columns: Sequence[Column], found: Sequence[Run], left: Sequence[str]) -> Table:
    """A row a run; the headings in `left` are words and stand to the left, the others are numbers."""
    made = plain_table()
    for heading, _ in columns:
        text = heading in left
        made.add_column(
            heading, justify="left" if text else "right", overflow="fold", no_wrap=heading not in ("run", "from")
        )
    for run in found:
        made.add_row(*(words.printable(cell(run)) for _, cell in columns))
    return made


def plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def listed(found: Sequence[Run], root: Path, metrics: Sequence[str], width: int) -> Table:
    """`runs ls`: on a narrow terminal without the columns that `runs show` has as well."""

    def metric(name: str) -> Column:
        return words.printable(name).replace("/", "\n", 1), lambda run: words.number(run.value(name))

    unnamed = [run for run in found if run.name not in below(run.folder, root).split("/")]
    columns: list[Column] = [
        ("run", lambda run: below(run.folder, root)),
        *([("name", lambda run: run.name)] if unnamed else []),
        ("state", lambda run: run.status.state),
        ("steps", words.steps),
        ("began", words.began),
        metric("val/loss"),
    ]
    parents: Column = "from", lambda run: ", ".join(map(words.parent, run.parents)) or "-"
    more: list[Column] = [
        ("stage", lambda run: run.status.stage),
        ("took", words.took),
        *map(metric, metrics),
        *([parents] if any(run.parents for run in found) else []),
        ("commit", words.commit),
    ]
    if width >= WIDE:
        columns = [*columns[:-4], more[0], *columns[-4:-1], more[1], columns[-1], *more[2:]]
    return table(columns, found, ("run", "state", "name", "stage", "from"))


def key_metrics(found: Sequence[Run]) -> list[str]:
    """One or two metrics that most of the runs have, the first of each task, in the order of the newest evaluation."""
    room = 1 if any(run.parents for run in found) else 2
    firsts = Counter(
        name
        for run in found
        for name in {row.task: row.name for row in reversed(run.metrics) if row.subset is None}.values()
    )
    order = list(dict.fromkeys(row.name for run in found for row in run.metrics))
    return sorted(firsts, key=lambda name: (-firsts[name], order.index(name)))[:room]


def ranked(found: Sequence[Run], root: Path, name: str) -> Table:
    """`runs best`: the value with its interval, and what it was measured on."""
    several = len({run.data for run in found}) > 1
    columns: list[Column] = [
        ("run", lambda run: below(run.folder, root)),
        ("value", lambda run: words.number(run.values[name].value)),
        ("95% interval", lambda run: words.interval(run.values[name])),
        ("n", lambda run: str(run.values[name].n or "")),
        ("steps", words.steps),
        ("state", lambda run: run.status.state),
        *([("data", words.data)] if several else []),
    ]
    return table(columns, found, ("run", "state", "data"))


def below(folder: Path, root: Path) -> str:
    return str(folder.relative_to(root)) if folder != root and folder.is_relative_to(root) else str(folder)


def show(run: Run, out: Console) -> None:
    """`runs show`: everything about one, on one screen."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(run).items():
        facts.add_row(name, words.printable(text))
    out.print(facts)
    if run.metrics:
        made = plain_table()
        for heading in ("task", "metric", "value", "95% interval", "n", "chance"):
            made.add_column(heading, justify="left" if heading in ("task", "metric") else "right", overflow="fold")
        for row in run.metrics:
            cells = words.number(row.value), words.interval(row), str(row.n or ""), words.number(row.chance)
            made.add_row(words.printable(row.task), words.printable(row.metric), *cells)
        out.print()
        out.print(made)
    out.print()
    for line in _next(run):
        out.print(words.printable(line), soft_wrap=True)  # to be copied in one piece


def _facts(run: Run) -> dict[str, str]:
    status, there = run.status, run.environment
    digest, _, changed = (there.commit or "no checkout").partition("+")
    patch = f", with changes ({run.folder / 'changes.diff'})" if (run.folder / "changes.diff").exists() else ""
    facts = {
        "run": f"{run.folder}  ({run.name})",
        "state": f"{status.state}, {words.steps(run)} steps, began {words.began(run)}, took {words.took(run)}",
        "why": status.message or "",
        "stage": status.stage + (f", from {', '.join(run.parents)}" if run.parents else ""),
        "command": there.command,
        "commit": digest + (patch or (", with untracked files" if changed else "")),
        "machine": ", ".join(filter(None, (words.machine(run), status.host))),
        "versions": ", ".join(f"{name} {v}" for name, v in {"mmfusion": there.mmfusion, **there.packages}.items() if v),
        "data": f"{_configured(run, 'root')}, fingerprint {words.data(run)}",
        "speed": f"{words.step_time(run)} a step of {_configured(run, 'batch_size')} samples" if status.step_s else "",
        "energy": energy.line(run.energy) if run.energy.sources else "",
    }
    for name in ("val/loss", "train/loss"):
        if values := run.curves.get(name, ([], []))[1]:
            ends = f"{words.number(values[0])} to {words.number(values[-1])}, lowest {words.number(min(values))}"
            facts[name] = f"{words.sparkline(values)}  {ends}"
    return {name: text for name, text in {**facts, "files": _files(run.folder)}.items() if text}


def _configured(run: Run, key: str) -> str:
    data = run.config.get("data")
    return str(data.get(key, "?")) if isinstance(data, dict) else "?"


def _files(folder: Path) -> str:
    """Names with sizes; a link counts as itself, wherever it leads."""
    sizes = {
        path.name + "/" * path.is_dir(): sum(
            file.lstat().st_size
            for file in (path, *(() if path.is_symlink() else path.rglob("*")))
            if file.is_symlink() or file.is_file()
        )
        for path in sorted(folder.iterdir())
    }
    return ", ".join(f"{name} {words.size(count)}" for name, count in sizes.items())


def _next(run: Run) -> list[str]:
    """What can be done with the run now, as commands."""
    folder, quoted, state = run.folder, shlex.quote(str(run.folder)), run.status.state
    if state in LIVE:
        return [f"stop it after a step:  kill -INT {run.status.pid}  (on {run.status.host})"]
    lines = []
    if (folder / "report.html").exists():
        lines.append(f"its report:    {(folder / 'report.html').resolve().as_uri()}")
    elif resume_points(folder):
        lines.append(f"go on with it: mmfusion train resume={quoted}")
    if (folder / "checkpoint").exists():
        lines.append(f"evaluate it:   mmfusion evaluate {quoted}")
    return lines or [f"nothing was saved; start again: {run.environment.command}"]
