"""`mmfusion data show`: samples of a set on one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import positive

HELP = "show samples on an HTML page: pictures, playable sounds, series, texts"
DESCRIPTION = (
    "Show samples as a person would look at them, chosen by a hash of key and seed, in turn from each source. ROOT is "
    "a folder of shards with a manifest.json, or of plain tars as img2dataset writes them. Samples that cannot be used "
    "are shown with the reason."
)
EXAMPLES = """  mmfusion data show data_prep/sample
  mmfusion data show data_prep/sample --split test --source tux-stamps --n 12 --out stamps.html
  mmfusion data show data_prep/sample --key frog-es watch-s07-right-pen"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="a folder of shards")
    parser.add_argument("--split", default="train", help="which split to show (default: train)")
    parser.add_argument("--n", type=positive, default=24, help="how many samples (default: 24)")
    parser.add_argument("--key", nargs="+", metavar="KEY", help="these samples, from whatever split")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other samples (default: 0)")
    parser.add_argument("--source", metavar="NAME", help="samples of this source only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: ROOT-SPLIT.html here)")


def run(options: argparse.Namespace) -> int:
    from mmfusion.data.shards import ShardSet, entries_of
    from mmfusion.data.survey import choose, find
    from mmfusion.progress import tracked
    from mmfusion.report import data_page, html

    root = options.root
    entries = entries_of(root, options.split)
    title = root.resolve().name
    out = html.writable(options.out or Path(f"{title}-{options.split}.html"))
    if options.key:
        sets = [ShardSet(root, split, entries) for split in dict.fromkeys(entry.split for entry in entries)]
        chosen = find(sets, options.key)
        how = {"Samples": f"{len(chosen)}, asked for by key"}
    else:
        shards = ShardSet(root, options.split, entries)
        found = choose(shards, n=options.n, seed=options.seed, source=options.source)
        chosen = [(shards, i) for i in found]
        how = {
            "Samples": f"{len(chosen)} of {len(shards):,} in {options.split}",
            "Chosen": f"by a hash of key and seed {options.seed}, in turn from each source",
        }
    cards = [data_page.card(*place) for place in tracked(chosen, "decoding", len(chosen))]
    print(html.save(out, data_page.page(title, {"Folder": str(root), **how}, cards)))
    return 0
