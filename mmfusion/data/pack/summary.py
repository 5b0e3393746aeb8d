"""What a person sees while data is packed and when it is done."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from mmfusion.console import console
from mmfusion.data.pack.check import Good, Skipped
from mmfusion.data.shards import ShardEntry

_FEW = 5


def tell_skipped(skipped: Sequence[Skipped]) -> None:
    """How many rows by reason, and a few of them."""
    if not skipped:
        return
    print(f"{len(skipped)} rows left out:", file=sys.stderr)
    for reason, n in Counter(item.reason for item in skipped).most_common():
        print(f"  {n} {reason}", file=sys.stderr)
    for item in skipped[:_FEW]:
        print(f"    {item}", file=sys.stderr)
    if len(skipped) > _FEW:
        print("    …", file=sys.stderr)


def tell(entries: Sequence[ShardEntry], good: Sequence[Good]) -> None:
    """A line for each source and split, then languages, labels, and what series measure."""
    modalities = [m for m in ("image", "audio", "sensor", "text") if any(m in entry.modalities for entry in entries)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("source", "split", "samples", *modalities, "hours", "MB", "shards"):
        table.add_column(heading, justify="left" if heading in ("source", "split") else "right")
    for source, split in dict.fromkeys((entry.source, entry.split) for entry in entries):
        of = [entry for entry in entries if (entry.source, entry.split) == (source, split)]
        counts = [str(sum(entry.modalities.get(m, 0) for entry in of)) for m in modalities]
        sums = f"{sum(e.hours for e in of):.2f}", f"{sum(e.bytes for e in of) / 1e6:.1f}", str(len(of))
        table.add_row(source, split, str(sum(entry.samples for entry in of)), *counts, *sums)
    console().print(table)
    for what, counts in (
        ("languages", sum((Counter(entry.languages) for entry in entries), Counter[str]())),
        ("labels", Counter(item.draft.labels["label"] for item in good if "label" in item.draft.labels)),
    ):
        if counts:
            named = ", ".join(f"{name} {n}" for name, n in counts.most_common(8))
            print(f"{what}: {named}{f' and {len(counts) - 8} more' if len(counts) > 8 else ''}")
    series = Counter(found for item in good for found in item.series)
    for (file, channels), n in series.most_common(_FEW):
        print(f"series {file} {n}: {channels}")
    if len(series) > _FEW:
        print(f"series with other channels: {len(series) - _FEW} more kinds")
