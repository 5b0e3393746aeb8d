"""Text to piece ids and back, with 64 reserved pieces that no text can spell.

A SentencePiece model for this project is trained with `user_defined_symbols=list(RESERVED)`, byte fallback (so that any
text has pieces) and without any normalisation, dummy prefix or whitespace removal (so that decode gives back the text).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from sentencepiece import SentencePieceProcessor

from mmfusion.types import DataError, Modality

_NAMED = ("pad", "begin", "end", "image", "audio", "sensor", "video", "user", "assistant")
RESERVED: tuple[str, ...] = tuple(f"<|{name}|>" for name in (*_NAMED, *(f"reserved_{i}" for i in range(9, 64))))
"""The 64 pieces with a meaning of their own: padding, borders, one placeholder per modality, roles, and a reserve."""

_SPELT = re.compile("|".join(re.escape(piece) for piece in RESERVED))
_PROBE = "  a  b\n\t<|end|> é 猫 <|reserved_63|>"


class Tokenizer(Protocol):
    """What the pipeline asks of a tokenizer."""

    size: int
    pad: int
    begin: int
    end: int
    user: int
    assistant: int
    score: int  # its logit at an answer's end is the answer's reward; stands in no text

    def encode(self, text: str) -> list[int]:
        """Piece ids; a text that spells a reserved piece is cut into ordinary pieces."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; reserved pieces are left out."""
        ...

    def placeholder(self, modality: Modality) -> int:
        """The piece whose place in a row a token of this modality fills."""
        ...

    def reserved(self) -> tuple[int, ...]:
        """The ids of the reserved pieces, in the order of RESERVED."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model that holds RESERVED; refuses one that would not give back what it was given."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            proto = self.path.read_bytes()
            self._pieces = SentencePieceProcessor()
            self._pieces.LoadFromSerializedProto(proto)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{path}: no SentencePiece model can be read here ({error}); give a trained .model"
            ) from None
        self.size = self._pieces.GetPieceSize()
        ids = cast("list[int]", self._pieces.PieceToId(list(RESERVED)))
        unknown = self._pieces.unk_id()
        missing = [piece for piece, i in zip(RESERVED, ids, strict=True) if i == unknown]
        if missing:
            raise DataError(
                f"{path}: lacks reserved pieces ({', '.join(missing[:3])} …); train with user_defined_symbols=RESERVED"
            )
        self._reserved = tuple(ids)
        self._skipped = frozenset(ids)
        by_name = dict(zip(_NAMED, ids, strict=False))
        self.pad, self.begin, self.end = by_name["pad"], by_name["begin"], by_name["end"]
        self.user, self.assistant = by_name["user"], by_name["assistant"]
        self.score = self._reserved[len(_NAMED)]
        self._placeholders: dict[str, int] = {name: by_name[name] for name in ("image", "audio", "sensor", "video")}
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise DataError(
                f"{path}: text does not survive encode and decode; train it with byte_fallback=True, "
                "normalization_rule_name='identity', add_dummy_prefix=False, remove_extra_whitespaces=False"
            )

    def encode(self, text: str) -> list[int]:
        if "<|" not in text or not _SPELT.search(text):
            return cast("list[int]", self._pieces.EncodeAsIds(text))
        # SentencePiece takes a spelt reserved piece as one: cut every one after its first character.
        ids: list[int] = []
        start = 0
        for match in _SPELT.finditer(text):
            ids += cast("list[int]", self._pieces.EncodeAsIds(text[start : match.start() + 1]))
            start = match.start() + 1
        return ids + cast("list[int]", self._pieces.EncodeAsIds(text[start:]))

    def decode(self, ids: Sequence[int]) -> str:
        return cast("str", self._pieces.DecodeIds([int(i) for i in ids if int(i) not in self._skipped]))

    def placeholder(self, modality: Modality) -> int:
        return self._placeholders[modality]

    def reserved(self) -> tuple[int, ...]:
        return self._reserved


def tokenizer_of(root: Path) -> SentencePieceTokenizer | None:
    """The tokenizer that lies with a set of shards: `tokenizer.model`, or that in the folder `tokenizer`."""
    places = (root / "tokenizer.model", root / "tokenizer" / "tokenizer.model")
    return next((SentencePieceTokenizer(path) for path in places if path.is_file()), None)


def silent(tokenizer: Tokenizer, vocab: int) -> list[int]:
    """The pieces that no answer says: reserved ones but its end, and those of a `vocab` larger than the tokenizer's."""
    return [*(piece for piece in tokenizer.reserved() if piece != tokenizer.end), *range(tokenizer.size, vocab)]
