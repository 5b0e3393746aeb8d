"""`mmfusion data stats`: what a set of shards holds, in numbers, and what to look at before training on it."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "count what shards hold, and say what to look at before training"
DESCRIPTION = (
    "Count samples, hours, pixels, languages, licences, labels and modalities, by split and source, in one pass over "
    "the shards, and say in words what a researcher would trip over: leaks between splits, shared subjects and "
    "speakers, labels that cannot be learnt. ROOT is a folder of shards with a manifest.json, or of plain tars."
)
EXAMPLES = """  mmfusion data stats data_prep/sample
  mmfusion data stats data_prep/sample --json > numbers.json
  mmfusion data stats data_prep/sample --decode --out stats.html"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="a folder of shards")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: ROOT-stats.html here)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON; a page only with --out")
    parser.add_argument("--decode", action="store_true", help="decode every part: slower, finds what headers hide")


def run(options: argparse.Namespace) -> int:
    import json
    import sys

    from mmfusion.console import console
    from mmfusion.data.pitfalls import pitfalls
    from mmfusion.data.shards import ShardSet, entries_of
    from mmfusion.data.stats import Stats
    from mmfusion.data.tokenizer import tokenizer_of
    from mmfusion.progress import tracked
    from mmfusion.report import data_stats, html

    root = options.root
    entries = entries_of(root, "train")
    title = root.resolve().name
    out = options.out or (None if options.json else Path(f"{title}-stats.html"))
    if out is not None:
        html.writable(out)
    stats = Stats(tokenizer_of(root), options.decode)
    sets = [ShardSet(root, split, entries) for split in dict.fromkeys(entry.split for entry in entries)]
    places = ((shards, i) for shards in sets for i in range(len(shards)))
    for shards, i in tracked(places, "reading", sum(map(len, sets))):
        stats.add(shards, i)
    numbers, warnings = stats.numbers(), pitfalls(stats)
    size = sum(entry.bytes for entry in entries)
    facts = {"Folder": str(root), "Shards": f"{len(entries):,}, {size / 1e6:,.1f} MB"}
    if options.json:
        print(json.dumps({**numbers, "shards": len(entries), "bytes": size, "warnings": warnings}, ensure_ascii=False))
    else:
        console().print(data_stats.terminal(numbers, warnings))
    if out is not None:
        address = html.save(out, data_stats.page(title, facts, numbers, warnings))
        print(address, file=sys.stderr if options.json else sys.stdout)
    return 0
