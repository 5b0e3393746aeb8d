"""The results in the README: prints them from the experiments' results.json, or puts them there with --write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARK = "<!-- results: printed by `uv run python experiments/table.py` -->\n"
END = "<!-- end of results -->\n"
SHOWN = {
    "quickstart": ("F1.train", "F2", "F3", "F4.sound", "F4.watch"),
    "first_hour": ("H1", "H5.step", "H7"),
    "chain": ("L1", "L2.image", "L2.audio", "L2.sensor", "L3.mean"),
    "quantization": ("Q1.picture_to_name.r-1", "Q2.trained", "Q3.reloaded.int8", "Q4.int8", "Q4.int4"),
    "sweep": ("Q8", "Q9"),
}


def table() -> str:
    lines = ["| | value | interval | n | beside it | must |", "|---|---|---|---|---|---|"]
    for experiment, ids in SHOWN.items():
        rows = {row["id"]: row for row in json.loads((HERE / experiment / "results.json").read_text())["rows"]}
        lines += [_line(experiment, rows[id]) for id in ids]
    return "\n".join([*lines, ""])


def _line(experiment: str, row: dict[str, Any]) -> str:
    interval = "" if row["ci95"] is None else f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}"
    beside = ", ".join(f"{name} {value:.3g}" for name, value in row["beside"].items())
    value = f"{row['value']:.3g} {row['unit']}".strip()
    cells = (f"[{row['id']}](experiments/{experiment}) {row['what']}", value, interval, f"{row['n']:,}", beside)
    return f"| {' | '.join(cells)} | {row['must'] or ''} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, _, rest = README.read_text().partition(MARK)
    _, there, after = rest.partition(END)
    README.write_text(f"{before}{MARK}\n{table()}\n{END}{after if there else rest}")


if __name__ == "__main__":
    main()
