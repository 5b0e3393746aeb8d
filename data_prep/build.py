"""Builds the whole embedded sample: `python -m data_prep.build [--package PATH]... [--cache FOLDER] [--out FOLDER]`.

Afterwards prints its size on disk and deflated; both have a limit that a test holds.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

from data_prep import emoji, seglearn, sonic_pi, tokenizer, tux_stamps
from data_prep.common import run

SCRIPTS = {
    **emoji.SCRIPTS,
    "tux-stamps": tux_stamps.build,
    "sonic-pi": sonic_pi.build,
    "seglearn": seglearn.build,
    "tokenizer": tokenizer.build,
}


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes on disk and bytes that zlib makes of each file, as git and wheels do."""
    contents = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    return sum(map(len, contents)), sum(len(zlib.compress(content, 6)) for content in contents)


def main() -> None:
    options = run(SCRIPTS, sys.argv[1:])
    on_disk, deflated = sizes(options.out)
    print(f"{options.out}: {on_disk / 1e6:.1f} MB on disk, {deflated / 1e6:.1f} MB deflated")


if __name__ == "__main__":
    main()
