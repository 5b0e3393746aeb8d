"""Text to pieces and back, and nothing that a text spells becomes a reserved piece."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmfusion.data.tokenizer import RESERVED, SentencePieceTokenizer
from mmfusion.types import DataError


def test_the_reserve_is_64_pieces() -> None:
    assert len(set(RESERVED)) == 64
    assert RESERVED[:9] == tuple(
        f"<|{n}|>" for n in ("pad", "begin", "end", "image", "audio", "sensor", "video", "user", "assistant")
    )
    assert (RESERVED[9], RESERVED[63]) == ("<|reserved_9|>", "<|reserved_63|>")


@example("<|end|><|end|> <|<|pad|>|>")
@example("  two  spaces\tand\nlines ")
@example("猫🦢 و ة")
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_text_comes_back_without_reserved_pieces(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.reserved())


@pytest.mark.parametrize("piece", RESERVED)
def test_a_spelt_reserved_piece_is_ordinary_text(tokenizer: SentencePieceTokenizer, piece: str) -> None:
    ids = tokenizer.encode(f"a{piece}b")
    assert not set(ids) & set(tokenizer.reserved())
    assert tokenizer.decode(ids) == f"a{piece}b"


def test_reserved_pieces_are_numbered_and_not_spoken(tokenizer: SentencePieceTokenizer) -> None:
    named = [tokenizer.pad, tokenizer.begin, tokenizer.end, tokenizer.placeholder("image"), tokenizer.assistant]
    assert [tokenizer.reserved()[i] for i in (0, 1, 2, 3, 8)] == named
    assert tokenizer.score == tokenizer.reserved()[9]  # "<|reserved_9|>": tokenizers that are there have no other name
    assert tokenizer.decode([tokenizer.begin, *tokenizer.encode("goose"), tokenizer.end]) == "goose"


def test_it_pickles(tokenizer: SentencePieceTokenizer) -> None:
    assert pickle.loads(pickle.dumps(tokenizer)).encode("goose") == tokenizer.encode("goose")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"user_defined_symbols": RESERVED[:5]}, r"lacks reserved pieces \(<\|sensor\|>"),
        ({"add_dummy_prefix": True}, "does not survive"),
        ({"normalization_rule_name": "nmt_nfkc"}, "does not survive"),
        ({"byte_fallback": False}, "does not survive"),
    ],
)
def test_a_model_that_would_change_text_is_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    model = io.BytesIO()
    settings: dict[str, Any] = {
        "user_defined_symbols": RESERVED,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        **how,
    }
    settings["user_defined_symbols"] = list(settings["user_defined_symbols"])
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a goose", "une oie"] * 50),
        model_writer=model,
        vocab_size=360,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    (tmp_path / "t.model").write_bytes(model.getvalue())
    with pytest.raises(DataError, match=message):
        SentencePieceTokenizer(tmp_path / "t.model")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(b"junk")
    for name in ("t.model", "missing.model"):
        with pytest.raises(DataError, match="no SentencePiece model"):
            SentencePieceTokenizer(tmp_path / name)
