"""When two wordings are one: what a reward and an evaluation mean by the right answer."""

from __future__ import annotations

from collections.abc import Iterable


def says(said: str, right: Iterable[str]) -> bool:
    """Whether what was said is one of the right wordings, but for case and white space."""
    return _plain(said) in {_plain(wording) for wording in right}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
