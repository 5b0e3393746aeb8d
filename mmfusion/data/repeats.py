"""What makes two samples the same: the bytes of a file, or all the texts where there is no file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmfusion.types import Part


def digests(parts: Sequence[Part]) -> list[bytes]:
    """A digest for each file; without any, one of the texts, whose case and spaces do not count."""
    files = [part.data for part in parts if isinstance(part.data, bytes)]
    texts = [" ".join(part.text.casefold().split()) for part in parts if part.text]
    return [
        hashlib.blake2b(data, digest_size=16).digest()
        for data in files or (["\0".join(texts).encode("utf-8", "replace")] if texts else [])
    ]
