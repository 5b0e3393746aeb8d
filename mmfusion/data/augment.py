"""Arrays to arrays: what may change in an example without changing what it is. All randomness comes from a seed.

The default ranges are gentle: in a few minutes of training a small model is short of steps, not of invariance.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from PIL import Image, ImageFilter

from mmfusion.data.series import array_of, cut, length_s, times_of
from mmfusion.types import Part, Sample

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's own grey


class AugmentImage:
    """Random affine map, colour and blur; each argument is the largest change, 0 leaves it out.

    `zoom`, `stretch` and `contrast` are factors (0.25: between 1/1.25 and 1.25); `saturation` and `mix` are added to
    the factors of a grey picture and of the other channels; `brightness` is a share of half the range, `shift` of the
    side; `flip` is a probability, `blur_px` the reach of a box. What lies outside has the mean colour of the corners.
    """

    def __init__(
        self,
        *,
        rotate_deg: Annotated[float, Ge(0), Le(180)] = 8.0,
        zoom: Annotated[float, Ge(0), Lt(1)] = 0.1,
        stretch: Annotated[float, Ge(0), Lt(1)] = 0.08,
        shear_deg: Annotated[float, Ge(0), Lt(60)] = 4.0,
        shift: Annotated[float, Ge(0), Le(1)] = 0.04,
        flip: Annotated[float, Ge(0), Le(1)] = 0.0,
        brightness: Annotated[float, Ge(0), Lt(1)] = 0.15,
        contrast: Annotated[float, Ge(0), Lt(1)] = 0.2,
        saturation: Annotated[float, Ge(0), Le(1)] = 0.3,
        mix: Annotated[float, Ge(0), Lt(1)] = 0.2,
        blur_px: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        self.rotate, self.shear = math.radians(rotate_deg), math.radians(shear_deg)
        self.zoom, self.stretch, self.shift, self.flip = zoom, stretch, shift, flip
        self.brightness, self.contrast, self.saturation, self.mix = brightness, contrast, saturation, mix
        self.blur_px = blur_px

    def __call__(self, part: Part, rng: random.Random) -> Part:
        """uint8 [height, width, 3] to the same shape."""
        pixels = array_of(part)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0)
        picture = Image.fromarray(pixels).transform(
            (pixels.shape[1], pixels.shape[0]),
            Image.Transform.AFFINE,
            self._affine(pixels.shape[1], pixels.shape[0], rng),
            resample=Image.Resampling.BILINEAR,
            fillcolor=tuple(int(c) for c in corners),
        )
        picture = picture.convert("RGB", self._colour(rng))
        radius = rng.uniform(-self.blur_px, self.blur_px)  # half of the pictures stay sharp
        if radius > 0:
            picture = picture.filter(ImageFilter.BoxBlur(radius))
        return dataclasses.replace(part, data=np.asarray(picture))

    def _affine(self, width: int, height: int, rng: random.Random) -> tuple[float, ...]:
        """From a place in the result to a place in the picture, in pixels, as Pillow wants it."""
        angle = rng.uniform(-self.rotate, self.rotate)
        shear = math.tan(rng.uniform(-self.shear, self.shear))
        scale = 1 / _around_one(self.zoom, rng)
        ratio = math.sqrt(_around_one(self.stretch, rng))
        sx, sy = scale * ratio, scale / ratio
        if rng.random() < self.flip:
            sx = -sx
        cos, sin = math.cos(angle), math.sin(angle)
        a, b = cos * sx, (cos * shear - sin) * sy
        d, e = sin * sx, (sin * shear + cos) * sy
        x, y = width / 2, height / 2
        to_x = x + rng.uniform(-self.shift, self.shift) * width
        to_y = y + rng.uniform(-self.shift, self.shift) * height
        return a, b, to_x - a * x - b * y, d, e, to_y - d * x - e * y

    def _colour(self, rng: random.Random) -> tuple[float, ...]:
        """Brightness, contrast, saturation and a mix of channels in one: 3 rows of 3 factors and an offset."""
        saturation = 1 + rng.uniform(-self.saturation, self.saturation)
        contrast = _around_one(self.contrast, rng)
        offset = 127.5 * (1 - contrast + rng.uniform(-self.brightness, self.brightness))
        made: list[float] = []
        for row in range(3):
            mixed = [rng.uniform(-self.mix, self.mix) for _ in range(3)]
            mixed[row] += 1 - sum(mixed)  # rows sum to one: grey stays grey
            grey = (1 - saturation) * contrast
            made += [saturation * contrast * m + grey * luma for m, luma in zip(mixed, _LUMA, strict=True)]
            made.append(offset)
        return tuple(made)


class AugmentAudio:
    """A clip of at most `crop_s` from a random place, at another speed and level, later, and with noise.

    `speed` is relative and moves the pitch with it; `gain_db` is the largest change of level; `shift_s` the longest
    silence put before; noise is white, between `noise_db` and 40 dB quieter still, below the clip's level.
    """

    def __init__(
        self,
        *,
        crop_s: Annotated[float, Gt(0)] = 2.5,
        speed: Annotated[float, Ge(0), Lt(1)] = 0.2,
        gain_db: Annotated[float, Ge(0)] = 6.0,
        shift_s: Annotated[float, Ge(0)] = 0.2,
        noise_db: Annotated[float, Ge(0)] = 20.0,
    ) -> None:
        self.crop_s, self.speed, self.gain_db, self.shift_s, self.noise_db = crop_s, speed, gain_db, shift_s, noise_db

    def __call__(self, part: Part, rng: random.Random) -> Part:
        """float32 [T] to float32 [T'] at the same rate."""
        wave, rate = array_of(part), part.rate_hz or 1.0
        most = max(1, round(self.crop_s * rate))
        first = rng.randrange(len(wave) - most + 1) if len(wave) > most else 0
        wave = wave[first : first + most]
        speed = _around_one(self.speed, rng)
        at = np.arange(max(1, int(len(wave) / speed)), dtype=np.float32) * np.float32(speed)
        wave = np.interp(at, np.arange(len(wave), dtype=np.float32), wave).astype(np.float32)
        level = float(np.sqrt(np.mean(np.square(wave))))
        gain = 10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20)
        hiss = level * 10 ** (-rng.uniform(self.noise_db, self.noise_db + 40) / 20)
        silence = round(rng.uniform(0, self.shift_s) * rate)
        made = _noise(silence + len(wave), rng) * np.float32(hiss)
        made[silence:] += wave
        made *= np.float32(gain)
        return dataclasses.replace(part, data=made)


class AugmentSensor:
    """A window of `window_s` from a random place, worn a little differently, somewhat larger and faster.

    Triads (channels called `…x`, `…y`, `…z` in one unit) are turned by one rotation of at most `rotate_deg` about a
    random axis, as one device is; `scale` and `speed` are relative.
    """

    def __init__(
        self,
        *,
        window_s: Annotated[float, Gt(0)] = 8.0,
        rotate_deg: Annotated[float, Ge(0), Le(180)] = 15.0,
        scale: Annotated[float, Ge(0), Lt(1)] = 0.1,
        speed: Annotated[float, Ge(0), Lt(1)] = 0.1,
    ) -> None:
        self.window_s, self.rotate, self.scale, self.speed = window_s, math.radians(rotate_deg), scale, speed

    def __call__(self, part: Part, rng: random.Random) -> Part:
        """float32 [T, C] to float32 [T', C] with the times belonging to it."""
        speed = _around_one(self.speed, rng)
        window_s = self.window_s * speed
        spare = length_s(part) - window_s
        part = cut(part, rng.uniform(0, spare) if spare > 0 else 0.0, window_s)
        series = array_of(part) * np.float32(_around_one(self.scale, rng))
        turn = _rotation(rng.uniform(0, self.rotate), rng)
        for triad in triads(part):
            series[:, triad] = series[:, triad] @ turn.T
        rate = part.rate_hz * speed if part.rate_hz is not None else None
        return dataclasses.replace(part, data=series, times_s=times_of(part) / speed, rate_hz=rate)


class Augment:
    """A decoded sample to a decoded sample, as a pure function of (sample, seed). None leaves a modality as it is."""

    def __init__(
        self,
        *,
        image: AugmentImage | None = None,
        audio: AugmentAudio | None = None,
        sensor: AugmentSensor | None = None,
    ) -> None:
        self.by_modality = {"image": image, "audio": audio, "sensor": sensor}

    def __call__(self, sample: Sample, seed: int) -> Sample:
        rng = random.Random(f"augment {seed}")
        parts: list[Part] = []
        for part in sample.parts:
            change = self.by_modality.get(part.type)
            parts.append(part if change is None else change(part, rng))
        return dataclasses.replace(sample, parts=tuple(parts))


@functools.cache
def _noise_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32)


def _noise(length: int, rng: random.Random) -> np.ndarray:
    """White noise [length] of level one, from a random place of a table: drawing it anew costs as much as the rest."""
    table = _noise_table()
    first = rng.randrange(len(table))
    rest = table[first : first + length]
    return rest if len(rest) == length else np.take(table, np.arange(first, first + length), mode="wrap")


def _around_one(most: float, rng: random.Random) -> float:
    """A factor between 1 / (1 + most) and 1 + most, as likely above one as below."""
    return math.exp(rng.uniform(-1, 1) * math.log1p(most))


def _rotation(angle: float, rng: random.Random) -> np.ndarray:
    """A rotation [3, 3] by `angle` rad about an axis of any direction (Rodrigues' formula)."""
    axis = np.array([rng.gauss(0, 1) for _ in range(3)])
    x, y, z = axis / max(float(np.linalg.norm(axis)), 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    return turn.astype(np.float32)


def triads(part: Part) -> list[list[int]]:
    """The channel numbers of each x, y, z that belong together: one name but for its last letter, and one unit."""
    number = {(name, unit): i for i, (name, unit) in enumerate(zip(part.channels, part.units, strict=True))}
    found: list[list[int]] = []
    for name, unit in number:
        if name[-1:] in ("x", "X"):
            low = name[-1] == "x"
            triad = [number.get((name[:-1] + (letter if low else letter.upper()), unit)) for letter in "xyz"]
            if None not in triad:
                found.append([i for i in triad if i is not None])
    return found
