"""Pictures, sound, series and text cut into patches: what an encoder reads, with a place for each.

Each class has `modality`, `merge` (how many consecutive patches an encoder makes into one token) and `dummy()`, the
part that stands in where a batch has none of its modality.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal, Protocol

import numpy as np
import scipy.fft
import scipy.sparse
from annotated_types import Ge, Gt
from PIL import Image

from mmfusion.data.gradients import cells
from mmfusion.data.order import stable_hash
from mmfusion.data.series import array_of, base_units, length_s, scaled, step_s, times_of
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import Modality, Part, SkipSample

LOUD = 1.2  # frames within 26 dB of a clip's loudest are what its spectrum is taken from
FLOOR = -3.0  # deviations below a clip's spectrum: as low as a frame can be


@dataclasses.dataclass(frozen=True)
class PartPatches:
    """One part cut into pieces: values[N, *], coords[N, 4] float32, valid[N], as in `types.Patches`.

    `channels` of a series: their hashes int64 [C] and their grid float32 [C, 2].
    """

    values: np.ndarray
    coords: np.ndarray
    valid: np.ndarray
    channels: tuple[np.ndarray, np.ndarray] | None = None

    def tokens(self, merge: int) -> int:
        """How many valid tokens an encoder makes of it: groups of `merge` patches with a valid one."""
        if merge == 1:
            return int(np.count_nonzero(self.valid))
        return int(np.count_nonzero(np.logical_or.reduceat(self.valid, np.arange(0, len(self.valid), merge))))


class Patchify(Protocol):
    """A decoded part to patches; raises SkipSample for a part that cannot be cut."""

    @property
    def modality(self) -> Modality: ...

    @property
    def merge(self) -> int: ...

    def __call__(self, part: Part) -> PartPatches: ...

    def dummy(self) -> PartPatches: ...


def _dummy(values: np.ndarray, channels: tuple[np.ndarray, np.ndarray] | None = None) -> PartPatches:
    """Zeros of which the first patch counts."""
    coords = np.zeros((len(values), 4), dtype=np.float32)
    return PartPatches(values, coords, np.arange(len(values)) == 0, channels)


# ------------------------------------------------------------------------------------------------------------ pictures


class PatchifyImage:
    """Squares of `patch_px`, of a picture resized so that its longer side has `size_px`.

    The ratio stays, up to the rounding of the shorter side to whole patches. A patch holds (patch_px / cell_px)² cells
    of 3 colours in [-1, 1] and the energies of `orientations` (see `gradients.cells`): with cell_px=1 and none of them
    its plain pixels. values [N, cells·(3 + orientations)], each patch row by row with a cell's values together, as
    timm's NaFlex ViT reads them; coords row and column in grid cells. `merge` is a square number b²: patches come in
    blocks of b x b, so that an encoder merges neighbours by a reshape; a grid that does not divide is padded with
    patches that are not valid.
    """

    modality: Literal["image"] = "image"

    def __init__(
        self,
        *,
        patch_px: Annotated[int, Gt(0)] = 8,
        cell_px: Annotated[int, Gt(0)] = 1,
        orientations: Annotated[int, Ge(0)] = 0,
        merge: Annotated[int, Gt(0)] = 4,
        size_px: Annotated[int, Gt(0)] = 48,
    ) -> None:
        if math.isqrt(merge) ** 2 != merge:
            raise ValueError(f"merge={merge}: blocks of patches are square, so it must be 1, 4, 9, …")
        if size_px % patch_px:
            raise ValueError(f"size_px={size_px} is no multiple of patch_px={patch_px}")
        if patch_px % cell_px:
            raise ValueError(f"patch_px={patch_px} is no multiple of cell_px={cell_px}")
        self.patch_px, self.merge, self.size_px = patch_px, merge, size_px
        self.cell_px, self.orientations = cell_px, orientations

    def __call__(self, part: Part) -> PartPatches:
        made = cells(self._resized(array_of(part)), self.cell_px, self.orientations)
        p, b = self.patch_px // self.cell_px, math.isqrt(self.merge)
        rows, columns = made.shape[0] // p, made.shape[1] // p
        coords, valid = _grid(rows, columns, b)
        if rows % b or columns % b:
            made = np.pad(made, ((0, -rows % b * p), (0, -columns % b * p), (0, 0)))
        blocks = made.reshape(-(-rows // b), b, p, -(-columns // b), b, p, -1).transpose(0, 3, 1, 4, 2, 5, 6)
        return PartPatches(np.ascontiguousarray(blocks.reshape(len(valid), -1)), coords, valid)

    def _resized(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        scale = self.size_px / max(height, width)
        p = self.patch_px
        target = max(1, round(width * scale / p)) * p, max(1, round(height * scale / p)) * p
        if target == (width, height):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR))

    def dummy(self) -> PartPatches:
        size = (self.patch_px // self.cell_px) ** 2 * (3 + self.orientations)
        return _dummy(np.zeros((self.merge, size), dtype=np.float32))


@functools.lru_cache(maxsize=1024)
def _grid(rows: int, columns: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """coords [N, 4] and valid [N] of a grid of patches in blocks of block x block, read row by row."""
    cells = np.indices((rows + -rows % block, columns + -columns % block))
    blocked = cells.reshape(2, cells.shape[1] // block, block, cells.shape[2] // block, block)
    row, column = blocked.transpose(0, 1, 3, 2, 4).reshape(2, -1)
    coords = np.zeros((len(row), 4), dtype=np.float32)
    coords[:, 1], coords[:, 2] = row, column
    return coords, (row < rows) & (column < columns)


# --------------------------------------------------------------------------------------------------------------- sound


def mel_of_hz(hz: np.ndarray | float) -> np.ndarray:
    """Mel as O'Shaughnessy (1987) gives it: 1,000 Hz is about 1,000 mel."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)


def mel_filters(bands: int, fft: int, rate_hz: float, low_hz: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of height one, evenly spaced in mel: weights [fft/2 + 1, bands], centres [bands] in mel.

    Raises ValueError if a band is narrower than the spectrum's lines.
    """
    edges = np.linspace(mel_of_hz(low_hz), mel_of_hz(rate_hz / 2), bands + 2)
    lines = mel_of_hz(np.arange(fft // 2 + 1) * rate_hz / fft)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((lines - low) / (centre - low), (high - lines) / (high - centre)))
    if (weights.sum(axis=0) == 0).any():
        raise ValueError(f"bands={bands} are too many for a spectrum of {fft // 2 + 1} lines up to {rate_hz / 2} Hz")
    return weights.astype(np.float32), centre


class PatchifyAudio:
    """Log-mel patches of `frames` by `patch_bands` bands, at most `max_s` of sound.

    Power spectra of Hann windows of `window_s` every `hop_s`, zero outside the clip, each centred on its hop;
    triangular mel bands; the natural logarithm with a floor of 1e-6, shifted and scaled to about one: (log + 5) / 5.

    The clip's own spectrum, the mean of each band over its loud frames, is taken out (as cepstral mean normalisation
    does it, Atal 1974, doi:10.1121/1.1914702) and given beside: what a voice or a microphone adds to every frame can
    then be told from what changes. values [N, (frames + 1)·patch_bands]: frame by frame, over the clip's deviation and
    not below FLOOR, then the clip's spectrum, halved. A stretch's band groups follow one another, from low to high,
    then comes the next stretch. coords: time of the patch's middle on the sample's clock, and in `channel` the middle
    of its bands in kilomel. Sound at another rate is resampled to `rate_hz`.
    """

    modality: Literal["audio"] = "audio"

    def __init__(
        self,
        *,
        rate_hz: Annotated[int, Gt(0)] = 16_000,
        window_s: Annotated[float, Gt(0)] = 0.025,
        hop_s: Annotated[float, Gt(0)] = 0.010,
        bands: Annotated[int, Gt(0)] = 64,
        frames: Annotated[int, Gt(0)] = 8,
        patch_bands: Annotated[int, Gt(0)] = 64,
        merge: Annotated[int, Gt(0)] = 1,
        max_s: Annotated[float, Gt(0)] = 2.8,
    ) -> None:
        if bands % patch_bands:
            raise ValueError(f"bands={bands} is no multiple of patch_bands={patch_bands}")
        self.rate_hz, self.hop, self.max_s, self.merge = rate_hz, round(hop_s * rate_hz), max_s, merge
        self.frames, self.bands, self.patch_bands = frames, bands, patch_bands
        self.patch_s = frames * hop_s
        self.window = np.hanning(round(window_s * rate_hz) + 1)[:-1].astype(np.float32)  # the periodic form
        self.fft = 1 << (len(self.window) - 1).bit_length()
        filters, centres = mel_filters(bands, self.fft, rate_hz)
        # Sparse: a dense product starts BLAS threads in the loader's workers, which then fight the model for its cores.
        self.filters = scipy.sparse.csr_array(filters)
        self.channel = (centres.reshape(-1, patch_bands).mean(axis=1) / 1000).astype(np.float32)

    def log_mel(self, wave: np.ndarray) -> np.ndarray:
        """float32 [T] at rate_hz -> [ceil(T / hop), bands], scaled."""
        count = max(1, -(-len(wave) // self.hop))
        half = len(self.window) // 2
        padded = np.zeros((count - 1) * self.hop + len(self.window), dtype=np.float32)
        kept = min(len(wave), len(padded) - half)
        padded[half : half + kept] = wave[:kept]
        frames = np.lib.stride_tricks.sliding_window_view(padded, len(self.window))[:: self.hop]
        spectrum = np.asarray(scipy.fft.rfft(frames * self.window, n=self.fft)).view(np.float32)
        np.square(spectrum, out=spectrum)
        power = spectrum[:, ::2] + spectrum[:, 1::2]  # real and imaginary parts lie side by side
        return (np.log(np.maximum(power @ self.filters, np.float32(1e-6))) + np.float32(5)) / np.float32(5)

    def normalised(self, mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[frames, bands] of `log_mel` without the clip's own spectrum, and that spectrum [bands]."""
        level = mel.mean(axis=1)
        loud = mel[level > level.max() - LOUD]
        spectrum = loud.mean(axis=0)
        return np.maximum((mel - spectrum) / (loud.std() + np.float32(0.1)), FLOOR), spectrum

    def __call__(self, part: Part) -> PartPatches:
        wave, rate = array_of(part), part.rate_hz
        if rate is None:
            raise TypeError(f"{part.file}: decoded sound has a rate")
        wave = _resampled(wave[: math.ceil(self.max_s * rate)], rate, self.rate_hz)
        mel, spectrum = self.normalised(self.log_mel(wave))
        stretches = -(-len(mel) // self.frames)
        groups = self.bands // self.patch_bands
        missing = stretches * self.frames - len(mel)
        mel = np.pad(mel, ((0, missing), (0, 0)), constant_values=FLOOR).reshape(stretches, self.frames, self.bands)
        beside = np.broadcast_to(spectrum / 2, (stretches, 1, self.bands))
        values = np.concatenate([mel, beside], axis=1).reshape(stretches, self.frames + 1, groups, self.patch_bands)
        values = np.ascontiguousarray(values.transpose(0, 2, 1, 3), dtype=np.float32)
        coords = np.zeros((stretches * groups, 4), dtype=np.float32)
        coords[:, 0] = np.repeat(part.start_s + (np.arange(stretches) + 0.5) * self.patch_s, groups)
        coords[:, 3] = np.tile(self.channel, stretches)
        valid = np.ones(len(coords), dtype=bool)
        return PartPatches(values.reshape(len(coords), -1), coords, valid)

    def dummy(self) -> PartPatches:
        return _dummy(np.zeros((1, (self.frames + 1) * self.patch_bands), dtype=np.float32))


def _resampled(wave: np.ndarray, rate: float, target: float) -> np.ndarray:
    """At another rate, band-limited; rates whose ratio has large terms are brought to the nearest with small ones."""
    if rate == target:
        return wave
    from scipy.signal import resample_poly  # half a second of imports that most data never needs

    ratio = Fraction(target / rate).limit_denominator(1000)
    return resample_poly(wave, ratio.numerator, ratio.denominator).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- series


class PatchifySensor:
    """Stretches of `patch_s` with `points` values a channel, at most `window_s` of a series at any rate.

    values [N, C, points, 2]: the value in multiples of a usual one (see `series.UNITS`) and whether it was measured;
    linear between neighbours, 0 where a neighbour is missing, NaN, or more than 2.5 usual steps from the next. Faster
    series are averaged down first. coords: time of the patch's middle on the sample's clock. A channel's hash is that
    of its name, its unit after conversion, and the place where the sensor was worn.
    """

    modality: Literal["sensor"] = "sensor"

    def __init__(
        self,
        *,
        patch_s: Annotated[float, Gt(0)] = 0.5,
        points: Annotated[int, Gt(0)] = 16,
        window_s: Annotated[float, Gt(0)] = 8.0,
        merge: Annotated[int, Gt(0)] = 1,
    ) -> None:
        self.patch_s, self.points, self.window_s, self.merge = patch_s, points, window_s, merge

    def __call__(self, part: Part) -> PartPatches:
        series, times, step = _averaged(scaled(part), times_of(part), step_s(part), self.patch_s / self.points)
        duration = min(length_s(part), self.window_s)
        stretches = max(1, math.ceil(duration / self.patch_s - 1e-6))
        apart = self.patch_s / self.points
        at = times_of(part)[0] + (np.arange(stretches * self.points) + 0.5) * apart
        values = _interpolated(series, times, at, gap=2.5 * step, beyond=max(step, apart))
        values = values.reshape(stretches, self.points, -1, 2).transpose(0, 2, 1, 3)
        coords = np.zeros((stretches, 4), dtype=np.float32)
        coords[:, 0] = part.start_s + times_of(part)[0] + (np.arange(stretches) + 0.5) * self.patch_s
        names = [
            _channel(name, unit, part.place or "") for name, unit in zip(part.channels, base_units(part), strict=True)
        ]
        grid = np.array(part.grid or [(0.0, 0.0)] * len(names), dtype=np.float32)
        channels = (np.array(names, dtype=np.int64), grid)
        return PartPatches(np.ascontiguousarray(values), coords, np.ones(stretches, dtype=bool), channels)

    def dummy(self) -> PartPatches:
        channels = (np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.float32))
        return _dummy(np.zeros((1, 1, self.points, 2), dtype=np.float32), channels)


@functools.lru_cache(maxsize=4096)
def _channel(name: str, unit: str, place: str) -> int:
    return stable_hash("channel", name, unit, place)


def _averaged(
    series: np.ndarray, times: np.ndarray, step: float, wanted_s: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Means over as many whole steps as fit into `wanted_s`, so that what is too fast for the points is not aliased.

    The series, its times and its usual step, after that.
    """
    each = int(wanted_s / step + 1e-6)
    each = min(each, len(series))
    if each < 2:
        return series, times, step
    whole = len(series) // each
    blocks = series[: whole * each].reshape(whole, each, -1)
    seen = np.isfinite(blocks)
    count = seen.sum(axis=1)
    means = np.where(seen, blocks, 0).sum(axis=1) / np.maximum(count, 1)
    means = np.where(count > 0, means, np.nan).astype(np.float32)
    return means, times[: whole * each].reshape(whole, each).mean(axis=1), step * each


def _interpolated(series: np.ndarray, times: np.ndarray, at: np.ndarray, *, gap: float, beyond: float) -> np.ndarray:
    """series[T, C] at the times `at`[Q] -> [Q, C, 2], value and whether it was measured there.

    Not measured: between two rows further apart than `gap`, and more than `beyond` before the first or after the last.
    """
    right = np.clip(np.searchsorted(times, at), 1, max(1, len(times) - 1))
    left = right - 1
    right = np.minimum(right, len(times) - 1)
    apart = np.maximum(times[right] - times[left], 1e-9)
    weight = np.clip((at - times[left]) / apart, 0, 1)[:, None].astype(np.float32)
    value = series[left] * (1 - weight) + series[right] * weight
    outside = np.maximum(times[0] - at, at - times[-1]) > beyond
    measured = np.isfinite(value) & ~(outside | (apart > gap))[:, None]
    return np.stack([np.where(measured, value, 0), measured], axis=-1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- text


class PatchifyText:
    """Piece ids [N] of a text, its first `max_pieces`; coords: the position, in `column`."""

    modality: Literal["text"] = "text"
    merge: int = 1

    def __init__(self, tokenizer: Tokenizer, *, max_pieces: Annotated[int, Ge(1)] = 32) -> None:
        self.tokenizer, self.max_pieces = tokenizer, max_pieces

    def __call__(self, part: Part) -> PartPatches:
        return self.of_ids(self.tokenizer.encode(part.text or "")[: self.max_pieces])

    def of_ids(self, ids: Sequence[int]) -> PartPatches:
        """Ids that are there already."""
        if not ids:
            raise SkipSample("empty text")
        coords = np.zeros((len(ids), 4), dtype=np.float32)
        coords[:, 2] = np.arange(len(ids))
        return PartPatches(np.array(ids, dtype=np.int64), coords, np.ones(len(ids), dtype=bool))

    def dummy(self) -> PartPatches:
        return _dummy(np.full(1, self.tokenizer.pad, dtype=np.int64))
