"""Sounds as Opus in Ogg, 16 kHz mono; on one kind of processor, for which libopus is optimised, the same bytes."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import soundfile
from scipy.signal import resample_poly

from mmfusion.data.media import ogg_crc

RATE_HZ = 16_000
COMPRESSION = 0.95  # of libsndfile's 0..1: about 25 kbit/s for speech
SERIAL = 0x6D6D_6675  # what stands in every page instead of a random number
SILENCE = 0.01  # a sound whose loudest sample stays below this share of full scale holds nothing to hear


def read_mono(content: bytes) -> np.ndarray:
    """Any sound file's bytes as float64 [T] at RATE_HZ, channels averaged."""
    values, rate_hz = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    common = math.gcd(RATE_HZ, rate_hz)
    return resample_poly(values.mean(axis=1), RATE_HZ // common, rate_hz // common)


def is_clipped(content: bytes) -> bool:
    """Whether a sound file was cut off at full scale: one sample in 500 or more stands within 1% of it."""
    values, _ = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    return bool(np.mean(np.abs(values) > 0.99) > 2e-3)


def encode_opus(values: np.ndarray) -> bytes:
    """float [T] at RATE_HZ, beyond full scale cut off, as Ogg Opus with a fixed stream serial."""
    out = io.BytesIO()
    soundfile.write(
        out,
        np.clip(values, -1.0, 1.0).astype(np.float32),
        RATE_HZ,
        format="OGG",
        subtype="OPUS",
        compression_level=COMPRESSION,
    )
    return pin_serial(out.getvalue(), SERIAL)


def pin_serial(content: bytes, serial: int) -> bytes:
    """Rewrite the stream serial of each Ogg page (RFC 3533, section 6) and the checksum that covers it."""
    pages, start = bytearray(content), 0
    while start < len(pages):
        if pages[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}")
        segments = pages[start + 26]
        end = start + 27 + segments + sum(pages[start + 27 : start + 27 + segments])
        struct.pack_into("<I", pages, start + 14, serial)
        struct.pack_into("<I", pages, start + 22, 0)
        struct.pack_into("<I", pages, start + 22, ogg_crc(bytes(pages[start:end])))
        start = end
    return bytes(pages)
