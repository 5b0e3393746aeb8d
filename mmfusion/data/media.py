"""What readers pass over in silence, checked on the bytes: npy headers, WAV lengths, Ogg pages."""

from __future__ import annotations

import functools
import io
import struct
import tokenize
import zlib

import numpy as np

from mmfusion.types import DataError, SkipSample

# ------------------------------------------------------------------------------------------------------------------ npy


@functools.lru_cache(maxsize=4096)
def _parse_npy(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    return read(file, max_header_size=4096)


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, where the numbers start) of an npy file, before anything is allocated.

    Raises DataError if it is no npy of plain numbers or its header claims another size than the file has.
    """
    try:
        wide = data[6:7] == b"\x02"
        start = (12 if wide else 10) + int.from_bytes(data[8 : 12 if wide else 10], "little")
        shape, fortran, dtype = _parse_npy(data[:start])
    except (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise DataError(f"no npy file ({str(error).splitlines()[0] if str(error) else error!r:.100})") from None
    if dtype.kind not in "fiu":
        raise DataError(f"an npy of {dtype}: only numbers are read, no objects")
    count = 1
    for n in shape:
        count *= n
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - start:
        raise DataError(f"an npy header that claims {shape} {dtype} over {len(data) - start} bytes")
    return shape, fortran, dtype, start


def npy_array(data: bytes) -> np.ndarray:
    """The array of an npy file, a view of its bytes."""
    shape, fortran, dtype, start = npy_header(data)
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


# ------------------------------------------------------------------------------------------------------------------ WAV


def check_wav(data: bytes) -> None:
    """Raises SkipSample if a WAV holds fewer bytes of sound than its header says; readers return what is there."""
    if data[:4] not in (b"RIFF", b"RIFX") or data[8:12] != b"WAVE":
        return
    order = "<" if data[:4] == b"RIFF" else ">"
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from(f"{order}I", data, at + 4)[0]
        if name == b"data":
            if size == 0:
                raise SkipSample("empty sound")
            if at + 8 + size > len(data):
                raise SkipSample("truncated sound", f"the header says {size} bytes, {len(data) - at - 8} are there")
            return
        at += 8 + size + size % 2
    raise SkipSample("empty sound", "a WAV without a data chunk")


# ------------------------------------------------------------------------------------------------------------------ Ogg

_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_crc(page: bytes) -> int:
    """The checksum of an Ogg page whose own checksum field is zeroed (RFC 3533: polynomial 0x04c11db7, not reflected).

    zlib's is the reflected form of the same polynomial, so mirrored bits go in and come out.
    """
    mirrored = zlib.crc32(page.translate(_MIRROR), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRROR), "big")


def check_ogg(data: bytes) -> None:
    """Raises SkipSample unless an Ogg file is an unbroken run of sound pages up to one marked as the last.

    Decoders drop a damaged page and end at a cut without a word (RFC 3533 for the page layout).
    """
    if data[:4] != b"OggS":
        return
    at, last = 0, False
    numbers: dict[bytes, int] = {}
    while at < len(data):
        if data[at : at + 4] != b"OggS" or at + 27 > len(data):
            raise SkipSample("truncated sound", f"no Ogg page at byte {at}")
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if end > len(data):
            raise SkipSample("truncated sound", f"the Ogg page at byte {at} is cut")
        (stored,) = struct.unpack_from("<I", data, at + 22)
        if ogg_crc(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != stored:
            raise SkipSample("corrupt sound", f"the checksum of the Ogg page at byte {at} does not hold")
        stream, number = data[at + 14 : at + 18], struct.unpack_from("<I", data, at + 18)[0]
        if numbers.setdefault(stream, number) != number:
            raise SkipSample("corrupt sound", f"Ogg page {numbers[stream]} is missing")
        numbers[stream] = number + 1
        last = bool(data[at + 5] & 4)
        at = end
    if not last:
        raise SkipSample("truncated sound", "the last Ogg page is missing")
