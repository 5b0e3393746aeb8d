"""Runs beside one another: in what their configurations differ, what each measured, and what cannot be compared."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.runs.folder import RunError
from mmfusion.runs.listing import Measured, Run, read

ABSENT = object()
MOST = 6  # lines that can be told apart in one plot


@dataclass(frozen=True)
class Comparison:
    """`runs` by a letter each. `differences` holds, by key, each run's value, None where it leaves the default;
    `metrics` each run's row by task and metric; `notes` are sentences, the gravest first."""

    runs: dict[str, Run]
    differences: dict[str, list[str | None]]
    metrics: dict[str, list[Measured | None]]
    notes: list[str]


def compare(folders: Sequence[Path]) -> Comparison:
    """Raises RunError for one run, too many, the same twice, or a folder that is none."""
    if not 2 <= len(folders) <= MOST:
        remedy = "name two or more" if len(folders) < 2 else "`mmfusion runs best METRIC` ranks any number"
        raise RunError(f"compare takes 2 to {MOST} runs, not {len(folders)}; {remedy}")
    for index, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:index]]:
            raise RunError(f"{folder}: is given twice")
    runs = dict(zip("ABCDEF", map(read, folders), strict=False))
    differences = _differences(list(runs.values()))
    metrics = _metrics(list(runs.values()))
    return Comparison(runs, differences, metrics, list(_notes(runs, differences, metrics)))


def _differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Keys that do not have one value in all runs; a run's own folder counts as the same in each."""
    rows = dict(_walk("", [{**run.config, "paths": None} for run in runs]))
    own = [str(_paths(run).get("run") or run.folder) for run in runs]

    def told(value: Any, folder: str) -> str | None:
        return None if value is ABSENT else _told(value).replace(folder, "RUN")

    found = {key: list(map(told, row, own)) for key, row in rows.items()}
    return {key: row for key, row in found.items() if len(set(row)) > 1}


def _paths(run: Run) -> dict[str, Any]:
    paths = run.config.get("paths")
    return paths if isinstance(paths, dict) else {}


def _walk(key: str, values: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Down to where not all of the values are mappings; a class that only some runs name stays whole."""
    classes = [isinstance(value, dict) and "_target_" in value for value in values]
    if all(value is ABSENT or isinstance(value, dict) for value in values) and all(classes) == any(classes):
        trees = [{} if value is ABSENT else value for value in values]
        for name in dict.fromkeys(name for tree in trees for name in tree):
            yield from _walk(f"{key}.{name}" if key else str(name), [tree.get(name, ABSENT) for tree in trees])
    else:
        yield key, values


def _told(value: Any) -> str:
    """A value as it is typed; a node with a class as a call: `AdamW(lr=0.001)`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and "_target_" in value:
        inside = ", ".join(f"{name}={_told(item)}" for name, item in value.items() if not str(name).startswith("_"))
        return f"{str(value['_target_']).rpartition('.')[2]}({inside})"
    return json.dumps(value, ensure_ascii=False, default=str)


def _metrics(runs: Sequence[Run]) -> dict[str, list[Measured | None]]:
    tables = [{_full_name(row): row for row in run.metrics} for run in runs]
    return {name: [table.get(name) for table in tables] for name in dict.fromkeys(n for t in tables for n in t)}


def _full_name(row: Measured) -> str:
    return row.name + (f" [{' + '.join(row.subset)}]" if row.subset and row.metric[:9] != "R@1 from " else "")


def _notes(
    runs: dict[str, Run], differences: dict[str, list[str | None]], metrics: dict[str, list[Measured | None]]
) -> Iterator[str]:
    groups = _grouped(runs, lambda run: run.data)
    if len([digest for digest in groups if digest]) > 1:
        told = "; ".join(f"{', '.join(letters)}: {digest[:8]}" for digest, letters in groups.items() if digest)
        yield f"Not comparable: these runs had different data ({told}). Their losses and metrics measure other things."
    if None in groups:
        yield f"The data of {', '.join(groups[None])} is not known (no checkpoint, no heartbeat): compare with care."
    evaluated = [index for index, run in enumerate(runs.values()) if run.metrics]
    differ = {key for key, row in differences.items() if len({row[index] for index in evaluated}) > 1}
    if asked := sorted({key.split(".")[1] for key in differ if key.startswith("evaluation.")}):
        yield f"Tasks that were not asked alike: {', '.join(asked)}."
    other = [name for name, row in metrics.items() if len({(m.n, m.chance) for m in row if m}) > 1]
    if other:
        yield f"Not of the same examples (n or chance differ): {', '.join(other)}."
    if without := [letter for letter, run in runs.items() if not run.metrics]:
        yield f"Not evaluated, so without metrics: {', '.join(without)}."
    for letter, run in runs.items():
        if run.status.state != "finished":
            yield f"{letter} is {run.status.state} after {run.step} of {run.planned or '?'} steps."
    if len(_grouped(runs, lambda run: run.environment.commit)) > 1:
        yield "Their commits differ: so may the code."
    if len(_grouped(runs, lambda run: (run.environment.processor, run.environment.cores))) > 1:
        yield "Their machines differ: so do their speeds."


def _grouped(runs: dict[str, Run], of: Callable[[Run], Any]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for letter, run in runs.items():
        found.setdefault(of(run), []).append(letter)
    return found


def unpaired(runs: Sequence[Run]) -> str:
    """What intervals side by side do not say, and what does."""
    folders = shlex.join(str(run.folder) for run in runs)
    return (
        "Each run's interval is its own: these differences are unpaired, and two intervals that overlap are no test. "
        f"For paired differences: mmfusion evaluate {folders}"
    )
