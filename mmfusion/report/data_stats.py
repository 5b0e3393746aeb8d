"""What `mmfusion data stats` counted, as tables for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmfusion.report import svg
from mmfusion.report.html import environment

_COLUMNS = {  # of the table by split and source: what is counted, its name, how it is written
    "samples": ("samples", "{:,.0f}"),
    "image": ("pictures", "{:,.0f}"),
    "megapixels": ("megapixels", "{:,.1f}"),
    "audio": ("sounds", "{:,.0f}"),
    "audio_hours": ("sound h", "{:,.2f}"),
    "sensor": ("series", "{:,.0f}"),
    "sensor_hours": ("series h", "{:,.2f}"),
    "text": ("texts", "{:,.0f}"),
    "bytes": ("MB", "{:,.1f}"),
    "skipped": ("unusable", "{:,.0f}"),
}
_SIZES = {  # what has a size: its name, its unit
    "image_px": ("Longer side of a picture", "px"),
    "audio_s": ("Length of a sound", "s"),
    "sensor_s": ("Length of a series", "s"),
    "text_characters": ("Length of a text", "characters"),
    "text_pieces": ("Length of a text", "pieces"),
}
_COUNTS = {  # tables of counts: their names
    "combinations": "Modalities that stand together",
    "kinds": "Conversations and preferences",
    "languages": "Languages of texts",
    "spoken_languages": "Languages spoken",
    "audio_rates": "Rates of sounds",
    "sensor_rates": "Rates of series",
    "channels": "Channels of series",
    "licences": "Licences",
    "skipped": "Why samples cannot be used",
}
_NAMED = 8  # entries of a table of counts on a terminal


def _columns(numbers: Mapping[str, Any]) -> list[str]:
    return [name for name in _COLUMNS if numbers["total"].get(name)]


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The row as it is read; nothing where nothing was counted."""
    values = {**row, "bytes": row.get("bytes", 0) / 1e6}
    return [_COLUMNS[name][1].format(values[name]) if values.get(name) else "" for name in columns]


def sizes(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Median and range of each size in words."""
    found = {}
    for name, (title, unit) in _SIZES.items():
        if one := numbers["sizes"].get(name):
            low, median, high = (svg.number(one[which]) for which in ("min", "median", "max"))
            found[f"{title} ({unit})"] = f"median {median}, from {low} to {high}"
    return found


def counts(numbers: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The tables of counts that have an entry, by their titles."""
    return {title: numbers[name] for name, title in _COUNTS.items() if numbers.get(name)}


def terminal(numbers: Mapping[str, Any], warnings: Sequence[str]) -> Group:
    """Everything for a terminal, a table by split and source first."""
    columns = _columns(numbers)
    by_source = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    by_source.add_column("split", "all")
    by_source.add_column("source")
    for name, footer in zip(columns, _cells(numbers["total"], columns), strict=True):
        by_source.add_column(_COLUMNS[name][0], footer, justify="right")
    for row in numbers["table"]:
        by_source.add_row(Text(row["split"]), Text(row["source"]), *_cells(row, columns))  # names are no markup
    rest = Table(box=None, pad_edge=False, show_header=False)
    rest.add_column(style="bold", max_width=32)
    rest.add_column()
    for title, entries in counts(numbers).items():
        rest.add_row(title, Text(_listed(entries)))
    for title, said in sizes(numbers).items():
        rest.add_row(title, said)
    for name, label in numbers["labels"].items():
        rest.add_row(Text(f"Label {name}"), Text(f"{label['classes']:,} values: {_listed(label['commonest'])}"))
    marks = [Text(f"! {warning}", style="yellow") for warning in warnings]
    return Group(by_source, "", rest, *([""] if marks else []), *marks)


def _listed(entries: Mapping[str, int]) -> str:
    named = [f"{name} {n:,}" for name, n in list(entries.items())[:_NAMED]]
    return ", ".join(named) + (f", and {len(entries) - _NAMED:,} more" if len(entries) > _NAMED else "")


def page(title: str, facts: Mapping[str, str], numbers: Mapping[str, Any], warnings: Sequence[str]) -> str:
    """The same as a page with plots."""
    columns = _columns(numbers)
    return environment().get_template("data_stats.html.j2").render(
        title=title,
        facts=facts,
        warnings=warnings,
        columns=[_COLUMNS[name][0] for name in columns],
        rows=[((row["split"], row["source"]), _cells(row, columns)) for row in numbers["table"]],
        total=_cells(numbers["total"], columns),
        counts=counts(numbers),
        plots=[_plot(numbers, name) for name in _SIZES if name in numbers["sizes"]],
        sizes=sizes(numbers),
        labels=numbers["labels"],
    )  # fmt: skip


def _plot(numbers: Mapping[str, Any], name: str) -> Markup:
    one, (title, unit) = numbers["sizes"][name]["histogram"], _SIZES[name]
    return svg.histogram(one["edges"], one["counts"], title=title, x_name=unit, log=one["log"])
