"""Decoding: one defined result for each kind of file, and a countable reason for each that is damaged."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_media import encoded, npy, picture_sample, png, sound, tone, watch_sample, wrist

from mmfusion.data.cache import Cache
from mmfusion.data.decode import Limits, decode_part, decode_sample, duration_s
from mmfusion.data.media import ogg_crc
from mmfusion.data.skips import Skips
from mmfusion.types import DataError, Part, Sample, SkipSample


def image(data: bytes, limits: Limits | None = None) -> np.ndarray:
    made = decode_part(Part(type="image", file="png", data=data), limits or Limits()).data
    assert isinstance(made, np.ndarray)
    assert made.dtype == np.uint8
    assert made.ndim == 3
    assert made.shape[2] == 3
    return made


def audio(data: bytes, rate_hz: float | None = None, limits: Limits | None = None) -> Part:
    return decode_part(Part(type="audio", file="wav", data=data, rate_hz=rate_hz), limits or Limits())


def reason_of(data: bytes, **how: object) -> str:
    with pytest.raises(SkipSample) as caught:
        audio(data, **how)  # pyright: ignore[reportArgumentType]  (one value for all parameters)
    return caught.value.reason


# ------------------------------------------------------------------------------------------------------------ pictures


def test_alpha_lies_on_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, (255, 0, 51)  # opaque, clear, a fifth
    expected = [[200, 0, 0], [255, 255, 255], [0.2 * 200 + 0.8 * 255, 204, 204]]
    np.testing.assert_allclose(image(encoded(Image.fromarray(pixels)))[0], expected, atol=1)


def test_palette_with_and_without_a_clear_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    assert image(encoded(picture)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert image(encoded(picture, transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    grey = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
    assert image(encoded(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 0x12, 0xFF]

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rgb = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0, 0xFFFF, 0x80FF)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rgb)) + chunk(b"IEND", b"")
    assert image(data).tolist() == [[[0x12, 0x56, 0x9A], [0, 0xFF, 0x80]]]


def test_cmyk_is_converted() -> None:
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(image(encoded(picture, "JPEG", quality=100)).mean((0, 1)), [255, 0, 0], atol=3)


def test_exif_turns_the_picture_upright() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the left half comes up
    upright = image(encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=100))
    assert upright.shape == (16, 8, 3)
    assert upright[:6].min() > 200
    assert upright[10:].max() < 50


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_one_pixel_of_any_mode(mode: str) -> None:
    assert image(encoded(Image.new(mode, (1, 1)))).shape == (1, 1, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_skipped(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, form)
    assert image(data).shape == (64, 64, 3)
    for end in (0, 10, len(data) // 2, len(data) - 200):
        with pytest.raises(SkipSample) as caught:
            image(data[:end])
        assert caught.value.reason == "corrupt picture"


def test_a_flipped_bit_in_a_png_is_skipped() -> None:
    data = bytearray(png(size=(32, 32)))
    data[60] ^= 1
    with pytest.raises(SkipSample, match="corrupt picture"):
        image(bytes(data))


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "EPS"])
def test_other_formats_are_not_opened(form: str) -> None:
    with pytest.raises(SkipSample, match="corrupt picture"):
        image(encoded(Image.new("RGB", (4, 4)), form))


@pytest.mark.parametrize("side", [12_000, 20_000])
@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_not_decoded(side: int) -> None:
    """144 megapixels in a few bytes, and so many that Pillow itself refuses."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(SkipSample) as caught:
        image(data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    assert caught.value.reason == "too many pixels"


# --------------------------------------------------------------------------------------------------------------- sound

FORMS = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_a_tone_comes_back(form: str, subtype: str) -> None:
    part = audio(sound(tone(440, 0.5), form, subtype))
    assert isinstance(part.data, np.ndarray)
    assert (part.rate_hz, part.data.dtype, part.data.ndim) == (16_000, np.float32, 1)
    assert abs(len(part.data) - 8000) <= 1200  # an MP3 is padded
    spectrum = np.abs(np.fft.rfft(part.data))
    assert np.fft.rfftfreq(len(part.data), 1 / 16_000)[spectrum.argmax()] == pytest.approx(440, abs=4)


def test_channels_are_averaged() -> None:
    part = audio(sound(np.stack([tone(), np.zeros_like(tone())], axis=1)))
    np.testing.assert_allclose(np.asarray(part.data), tone() / 2, atol=1e-4)


@pytest.mark.parametrize(("form", "subtype"), FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_sound_is_skipped(form: str, subtype: str, share: float) -> None:
    data = sound(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 4, form, subtype)
    assert reason_of(data[: int(len(data) * share)]) in ("truncated sound", "corrupt sound", "empty sound")


def test_a_header_alone_is_skipped() -> None:
    data = sound(tone())
    assert reason_of(data[:44]) == "truncated sound"
    assert reason_of(sound(tone()[:0])) == "empty sound"
    assert reason_of(data[:36]) == "empty sound"


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_flipped_bits_are_skipped(form: str, subtype: str) -> None:
    data = bytearray(sound(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 4, form, subtype))
    data[2 * len(data) // 3] ^= 0x10
    assert reason_of(bytes(data)) in ("corrupt sound", "truncated sound")


def test_a_missing_ogg_page_is_skipped() -> None:
    data = sound(np.random.default_rng(0).standard_normal(64_000).astype(np.float32) / 4, "OGG", "VORBIS")
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]
    assert len(starts) > 4
    assert reason_of(data[: starts[3]] + data[starts[4] :]) == "corrupt sound"
    assert reason_of(data[: starts[-1]]) == "truncated sound"


def test_the_ogg_checksum_against_a_bitwise_one() -> None:
    def bitwise(page: bytes) -> int:
        crc = 0
        for byte in page:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
        return crc

    for page in (b"", b"\0", b"\x01", b"OggS", bytes(range(256))):
        assert ogg_crc(page) == bitwise(page)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "NaN in sound"), (np.inf, "values beyond all measure"), (-1e30, "values beyond all measure")],
)
def test_a_sound_with_a_value_that_cannot_be_is_skipped(value: float, reason: str) -> None:
    wave = tone()
    wave[100] = value
    assert reason_of(sound(wave, "WAV", "FLOAT")) == reason


def test_rates_and_channels() -> None:
    assert audio(sound(tone(rate=8000), rate=8000), rate_hz=8000.0).rate_hz == 8000
    assert audio(sound(tone(rate=44_100), rate=44_100)).rate_hz == 44_100
    assert reason_of(sound(tone()), rate_hz=44_100.0) == "another sample rate than declared"
    assert reason_of(sound(np.zeros((100, 9), np.float32))) == "too many sound channels"
    data = bytearray(sound(tone()))
    data[24:28] = struct.pack("<I", 0)
    assert reason_of(bytes(data)) in ("impossible sample rate", "corrupt sound")
    data = bytearray(sound(tone()))
    data[22:24] = struct.pack("<H", 65_535)
    assert reason_of(bytes(data)) in ("too many sound channels", "corrupt sound")


def test_three_hours_are_too_long_and_are_not_decoded() -> None:
    wave = np.zeros(3 * 3600 * 1000, np.float32)
    assert reason_of(sound(wave, "FLAC", rate=1000)) == "sound too long"
    assert reason_of(sound(tone(seconds=0.3)), limits=Limits(audio_s=0.25)) == "sound too long"


# -------------------------------------------------------------------------------------------------------------- series


def test_a_series_of_any_number_type_in_any_order() -> None:
    values = np.arange(12).reshape(4, 3)
    for array in (values.astype(np.float16), values.astype(np.int16), np.asfortranarray(values.astype(np.float64))):
        part = decode_part(wrist(data=npy(array)))
        np.testing.assert_array_equal(np.asarray(part.data), values.astype(np.float32))
        np.testing.assert_allclose(np.asarray(part.times_s), [0, 0.02, 0.04, 0.06])


def test_nan_infinity_and_what_cannot_be_are_masked() -> None:
    values = np.ones((4, 3))
    values[1, 0], values[2, 1], values[2, 2], values[3, 0] = np.nan, -np.inf, 1e300, -3e38
    part = decode_part(wrist(data=npy(values)))
    assert np.isnan(np.asarray(part.data)).sum() == 4
    with pytest.raises(SkipSample, match="no value was measured"):
        decode_part(wrist(data=npy(np.full((4, 3), np.nan))))
    with pytest.raises(SkipSample, match="empty series"):
        decode_part(wrist(data=npy(np.zeros((0, 3)))))


def test_times_of_their_own() -> None:
    times = np.array([0.0, 0.5, 0.6, 3.0])
    part = wrist(data=npy(np.zeros((4, 3))), rate_hz=None, times="t.npy", times_s=npy(times))
    np.testing.assert_array_equal(np.asarray(decode_part(part).times_s), times)
    assert duration_s(part) == 3.0
    for bad in ([0.0, 0.5, 0.4, 3.0], [0.0, 0.5, 0.5, 3.0], [0.0, np.nan, 1.0, 2.0]):
        with pytest.raises(SkipSample, match="times run backwards"):
            decode_part(dataclasses.replace(part, times_s=npy(np.array(bad))))
    with pytest.raises(DataError, match=r"an array \[3\] of times for 4 rows"):
        decode_part(dataclasses.replace(part, times_s=npy(times[:3])))


def test_hostile_arrays_stop_the_run_before_anything_is_allocated() -> None:
    huge = npy(np.zeros((4, 3))).replace(b"(4, 3), }           ", b"(4999999999999, 3), }")
    assert b"4999999999999" in huge
    for data, message in [
        (huge, "claims"),
        (npy(np.array([[None, 1, 2]], dtype=object)), "only numbers"),
        (npy(np.array([[(1, 2)]], dtype=[("a", int), ("b", int)])), "only numbers"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os') ", "no npy"),
        (npy(np.zeros((4, 3))).replace(b"}", b" "), "no npy"),
        (npy(np.zeros((4, 3)))[:-1], "claims"),
        (npy(np.zeros((4, 2))), "3 channels"),
    ]:
        sample = dataclasses.replace(watch_sample(0), parts=(wrist(data=data),))
        with pytest.raises(DataError, match=message) as caught:
            decode_sample(dataclasses.replace(sample, url="a.tar"))
        assert "a.tar: key 'w0000': npy" in str(caught.value)
    with pytest.raises(SkipSample, match="series too long"):
        decode_part(wrist(), Limits(series_values=100))


# ------------------------------------------------------------------------------------------------------ whole samples


def test_messages_name_shard_key_and_member() -> None:
    sample = Sample(key="k7", url="a.tar", parts=(Part(type="image", file="left.png", data=b"junk"),))
    with pytest.raises(SkipSample, match=r"a.tar: key 'k7': left.png: corrupt picture"):
        decode_sample(sample)
    with pytest.raises(SkipSample, match="no parts"):
        decode_sample(Sample(key="k7"))
    with pytest.raises(SkipSample, match="no decoder"):
        decode_sample(dataclasses.replace(sample, parts=(Part(type="video", file="mp4", data=b""),)))


def test_a_cache_decodes_once_and_forgets_the_oldest() -> None:
    cache = Cache(2 * 16 * 16 * 3)
    first, second, third = (picture_sample(i) for i in range(3))
    once = decode_sample(first, cache=cache).parts[0].data
    decode_sample(second, cache=cache)
    assert decode_sample(first, cache=cache).parts[0].data is once
    decode_sample(third, cache=cache)
    assert cache.used_bytes == 2 * 16 * 16 * 3
    assert decode_sample(first, cache=cache).parts[0].data is once
    assert decode_sample(second, cache=cache).parts[0].data is not None
    assert decode_sample(third, cache=cache).parts[0].data is not once
    np.testing.assert_array_equal(
        np.asarray(decode_sample(second, cache=cache).parts[0].data), image(png((40, 80, 160)))
    )


def test_too_many_holes_stop_the_run() -> None:
    skips = Skips(max_fraction=0.1, patience=100)
    skips.add(50, {"corrupt picture": 20})
    with pytest.raises(DataError, match=r"26 of 100 samples .*corrupt picture \(25\), NaN in sound \(1\).* is 0.1"):
        skips.add(50, {"corrupt picture": 5, "NaN in sound": 1})
    few = Skips(max_fraction=1.0)
    few.add(15, {"no parts": 15})
    with pytest.raises(DataError, match="16 of 16"):
        few.add(1, {"no parts": 1})
    nothing, something = Skips(), Skips()
    nothing.add(3, {"no parts": 3})
    something.add(3, {"no parts": 2})
    something.end()
    with pytest.raises(DataError, match="3 of 3"):
        nothing.end()
