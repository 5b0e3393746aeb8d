"""The vocabulary that packed data is given unless the caller has one: that of the embedded sample."""

from __future__ import annotations

from pathlib import Path

NAME = "tokenizer.model"
SIZE = 8192  # pieces: what `model.decoder.vocab` is without a word


def default_tokenizer() -> Path:
    """8192 pieces with byte fallback, so that any text has pieces: the wheel's copy, else the repository's."""
    package = Path(__file__).parents[2]
    packaged = package / "assets" / NAME
    return packaged if packaged.is_file() else package.parent / "data_prep" / "sample" / "tokenizer" / NAME
