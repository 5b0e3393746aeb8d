"""The index of one tar: which keys it holds and where their members lie.

A tar is data from elsewhere. It is read by offset, never extracted; every header is walked once when it is opened, and
what plain readers pass over in silence (a cut tail, a zeroed block, half a sample) is refused with the shard's name.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mmfusion.data.format import sample_from_members
from mmfusion.types import DataError, Sample

EXECUTABLE = frozenset(("pyd", "pkl", "pickle", "pth", "pt", "npz", "joblib", "dill", "so", "dll", "py", "pyc"))
"""Members with one of these names are code, or a pickle or an archive that a decoder might open: never in a shard."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and the rest, at the first dot of the name, as webdataset cuts
_BLOCK = 512


def _check_kind(path: Path, file: BinaryIO) -> None:
    head = file.read(8)
    if not head:
        raise DataError(f"{path}: is empty; fetch it again")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is compressed with {name}; shards are read by offset: unpack it to a plain tar")
    file.seek(0)


class _Header(tarfile.TarInfo):
    """A file's header, without what nobody asks of it (owner, times, mode), which is most of the time it takes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> tarfile.TarInfo:
        """As tarfile reads it where the header is all ASCII and has no extension; everything else goes to tarfile."""
        try:
            name = bytes(buf[:100]).partition(b"\0")[0]
            size, told = (int(buf[start:end].rstrip(b" \0"), 8) for start, end in ((124, 136), (148, 156)))
            plain = len(buf) == _BLOCK and buf[156] in b"0\0" and not buf[345] and not name.endswith(b"/")
            if plain and name and size >= 0 and told == 256 + sum(buf[:148]) + sum(buf[156:]):
                header = cls(name.decode("ascii"))
                header.size = size
                return header
        except (ValueError, IndexError):
            pass  # no plain numbers, letters or length: tarfile says what it is
        return super().frombuf(buf, encoding, errors)  # pyright: ignore[reportArgumentType]


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of every file in a tar; raises DataError on anything that is not a whole, plain tar."""
    _check_kind(path, file)
    size = os.fstat(file.fileno()).st_size
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", tarinfo=_Header)
        end = 0
        while (member := tar.next()) is not None:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (else every header is kept; the stubs hide it)
            if member.isdir():
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or getattr(member, "sparse", None):
                raise DataError(
                    f"{path}: {member.name!r} is a link, device or sparse file; shards hold plain files only"
                )
            if member.size < 0 or member.offset_data < end or member.offset_data + member.size > size:
                raise DataError(f"{path}: is cut inside {member.name!r}; fetch it again")
            end = member.offset_data + member.size
            yield member.name, member.offset_data, member.size
        tail = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, UnicodeError) as error:
        raise DataError(f"{path}: no whole tar ({error}); fetch it again") from None
    file.seek(tail)
    rest = 0
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            if size - tail < _BLOCK:
                raise DataError(f"{path}: is cut in a header at byte {tail}; fetch it again")
            raise DataError(f"{path}: garbage after byte {tail}, where a member or the end should be; fetch it again")
        rest += len(chunk)
    if rest < 2 * _BLOCK:
        raise DataError(f"{path}: is cut at byte {tail + rest}, its end mark is missing; fetch it again")


def _check_name(path: Path, name: str) -> None:
    pieces = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in pieces or ":" in pieces[0] or "\0" in name:
        raise DataError(f"{path}: the member {name!r} points outside the shard")
    if not EXECUTABLE.isdisjoint(pieces[-1].lower().split(".")[1:]):
        raise DataError(f"{path}: the member {name!r} could hold code; take it out of the shard")


class ShardIndex:
    """The keys of one tar and where their members lie; `read(i)` is one `pread`.

    Opening walks all headers. Members without a dot in their name, and folders, are passed over, as
    webdataset does. Raises DataError on a tar that is not whole or not plain; pickles without its file descriptor.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        keys: list[str] = []
        names: list[str] = []
        spans: list[tuple[int, int]] = []
        first: list[int] = []
        seen: set[str] = set()
        try:
            with self.path.open("rb") as file:
                for name, offset, size in _members(self.path, file):
                    _check_name(self.path, name)
                    match = _KEY.match(name)
                    if match is None:
                        continue
                    if name.casefold() in seen:
                        raise DataError(f"{self.path}: {name!r} is there twice (upper and lower case are one)")
                    seen.add(name.casefold())
                    if not keys or keys[-1] != match[1]:
                        keys.append(match[1])
                        first.append(len(names))
                    names.append(match[2].lower())
                    spans.append((offset, size))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not keys:
            raise DataError(f"{self.path}: holds no sample; fetch it again")
        if len(set(keys)) != len(keys):
            split = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{self.path}: the members of {split!r} do not stand together; write the shard anew")
        self.keys: tuple[str, ...] = tuple(keys)
        self._names = tuple(names)
        self._first = np.array([*first, len(names)], dtype=np.int64)
        self._spans = np.array(spans, dtype=np.int64)
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the interpreter's end `os` is gone
        if (file := getattr(self, "_file", None)) is not None:
            close(file)

    def close(self) -> None:
        """Gives the file descriptor back; the next read opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def members(self, i: int) -> dict[str, bytes]:
        """The bytes of sample i's members by what follows the key, in the tar's order."""
        if not 0 <= i < len(self.keys):
            raise IndexError(i)
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        first, last = int(self._first[i]), int(self._first[i + 1])
        spans = cast("list[tuple[int, int]]", self._spans[first:last].tolist())
        start, end = spans[0][0], sum(spans[-1])
        data = os.pread(self._file, end - start, start)
        if len(data) != end - start:
            raise DataError(f"{self.path}: key {self.keys[i]!r}: the shard has shrunk since it was opened")
        names = self._names[first:last]
        return {name: data[o - start : o - start + n] for name, (o, n) in zip(names, spans, strict=True)}

    def read(self, i: int) -> Sample:
        """Sample i, its parts holding bytes. Raises SkipSample if its json or text is not as it must be."""
        return sample_from_members(self.keys[i], self.members(i), str(self.path))
