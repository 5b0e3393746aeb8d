from __future__ import annotations

from pathlib import Path

import pytest
from tiny_media import train_tokenizer, write_mixed

from mmfusion.data.tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(tokenizer_path)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three sources; nobody may write here."""
    return write_mixed(tmp_path_factory.mktemp("mixed"))
