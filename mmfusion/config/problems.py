"""What is wrong with a configuration, as lines that name the key, the reason and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from mmfusion.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be used; each problem is one line with the key, the reason and the remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def one_line(error: Exception) -> str:
    """What Hydra, OmegaConf or YAML found, with the key where it is known."""
    key = getattr(error, "full_key", None)
    text = str(error) or str(error.__cause__)
    return f"{key}: {text.splitlines()[0]}" if key else " ".join(text.split())


def near(word: str, known: Collection[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
