"""A comparison on a terminal: three tables."""

from __future__ import annotations

from rich.console import Console

from mmfusion.runs import words
from mmfusion.runs.comparison import Comparison, unpaired
from mmfusion.runs.tables import plain_table

KEY = 34  # characters of a name that stand in one line
CELL = 18  # of a value with its interval


def show(found: Comparison, out: Console) -> None:
    """Runs, notes, configuration differences, metrics."""
    for letter, run in found.runs.items():
        out.print(f"{letter}  {words.printable(str(run.folder))}", soft_wrap=True)
    out.print()
    head = plain_table()
    for name in ("", "state", "steps", "took", "a step", "val/loss", "commit", "data"):
        head.add_column(name, justify="left" if name in ("", "state", "commit", "data") else "right", no_wrap=True)
    for letter, run in found.runs.items():
        times = words.took(run), words.step_time(run), words.number(run.value("val/loss"))
        origin = words.printable(words.commit(run)), words.printable(words.data(run))
        head.add_row(letter, run.status.state, words.steps(run), *times, *origin)
    out.print(head)
    for note in found.notes:
        out.print(f"· {words.printable(note)}")
    _differences(found, out)
    if found.metrics:
        _metrics(found, out)


def _differences(found: Comparison, out: Console) -> None:
    out.print("\nconfiguration, where it differs" if found.differences else "\nconfiguration: the same")
    made = plain_table()
    made.add_column("", overflow="fold", min_width=min(KEY, max(map(len, found.differences), default=0)))
    for letter in found.runs:
        made.add_column(letter, overflow="fold")
    for key, row in found.differences.items():
        made.add_row(words.printable(key), *("-" if value is None else words.printable(value) for value in row))
    out.print(made)


def _metrics(found: Comparison, out: Console) -> None:
    """A column a run where there is room for them, else a line a run."""
    out.print("\nmetrics, 95% interval")
    made = plain_table()
    made.add_column("", overflow="fold")
    letters = list(found.runs)
    wide = KEY + CELL * len(letters) <= out.width
    for name in letters if wide else ("", "", ""):
        made.add_column(name, justify="right", no_wrap=True)
    for name, row in found.metrics.items():
        values = [("-", "") if m is None else (words.number(m.value), words.interval(m)) for m in row]
        if wide:
            made.add_row(words.printable(name), *("\n".join(cell).strip() for cell in values))
        else:
            for index, cell in enumerate(values):
                made.add_row("" if index else words.printable(name), letters[index], *cell)
    out.print(made)
    out.print(words.printable(unpaired(list(found.runs.values()))), soft_wrap=True)
