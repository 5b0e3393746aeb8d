"""Any text to a key that every tar, file system and reader takes, and no two alike."""

from __future__ import annotations

import unicodedata
from collections import Counter

_LONGEST = 120  # characters


def safe(name: str) -> str:
    """A name of letters, marks and digits of any script, `-` and `_`; the rest is one `_` for each run of signs."""
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    kept = "".join(c if c in "-_" or unicodedata.category(c)[0] in "LMN" else " " for c in name)
    return "_".join(kept.split())[:_LONGEST].strip("_") or "sample"


class Keys:
    """Safe keys in the order of asking: the second `cat` (upper and lower case are one) is `cat-2`."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next = Counter[str]()

    def __call__(self, name: str) -> str:
        wanted = key = safe(name)
        folded = _folded(wanted)
        while _folded(key) in self._taken:
            self._next[folded] += 1
            key = f"{wanted}-{self._next[folded] + 1}"
        self._taken.add(_folded(key))
        return key


def _folded(key: str) -> str:
    return unicodedata.normalize("NFC", key).casefold()
