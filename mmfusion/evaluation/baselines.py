"""What a metric must be held against: nearest neighbours of pictures, logistic regression on simple features, the
commonest class. None of them is tuned: each constant is a default of its field, fixed before any test was run.

scikit-learn and scikit-image are imported where they are used: training checks its tasks before it begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE_PX = 48
C = 1.0


# ----------------------------------------------------------------------------------------------------------- pictures


def on_square(picture: np.ndarray, side_px: int = SIDE_PX) -> np.ndarray:
    """A picture uint8 [height, width, 3] scaled to fit a white square, float32 [side_px, side_px, 3] in 0..1."""
    height, width = picture.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(picture)
    canvas = Image.new("RGB", (side_px, side_px), "white")
    canvas.paste(
        image if size == image.size else image.resize(size), ((side_px - size[0]) // 2, (side_px - size[1]) // 2)
    )
    return np.asarray(canvas, dtype=np.float32) / 255


def pixels(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The pictures' bare pixels, float32 [n, F]."""
    return np.stack([on_square(picture).ravel() for picture in pictures])


def gradients_and_blur(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Histograms of oriented gradients beside the blurred pixels, float32 [n, F].

    Dalal & Triggs 2005, doi:10.1109/CVPR.2005.177. Both blocks have unit norm, so that shape and colour weigh the same.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.feature import hog

    squares = [on_square(picture) for picture in pictures]
    shape = np.stack(
        [
            hog(square, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), channel_axis=-1)
            for square in squares
        ]
    )
    colour = np.stack([gaussian_filter(1 - square, (3, 3, 0))[2::4, 2::4].ravel() for square in squares])
    return np.concatenate([unit(shape), unit(colour)], axis=1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row [..., F] at length one; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int = 1) -> np.ndarray:
    """The k rows of `gallery` [G, F] nearest to each row of `queries` [Q, F] in Euclidean distance, [Q, k].

    The nearest first; ties go to the earlier row.
    """
    distances = (gallery**2).sum(1) - 2 * (queries @ gallery.T)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


# --------------------------------------------------------------------------------------------------- sound and series


def sound_features(wave: np.ndarray, rate_hz: float) -> np.ndarray:
    """Means, deviations, mean absolute changes of 24 log bands, loudness and length of a mono clip [T], float32 [74].

    Bands are spaced evenly in mel (O'Shaughnessy 1987) up to 8 kHz; a clip shorter than a frame is padded with silence.
    """
    from scipy.signal import get_window

    frame, hop = round(0.032 * rate_hz), round(0.016 * rate_hz)
    padded = np.pad(wave.astype(np.float64), (0, max(0, frame - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[::hop] * get_window("hann", frame)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(frame, 1 / rate_hz) / 700)
    band = np.minimum((mel / (2595 * np.log10(1 + 8000 / 700)) * 24).astype(int), 24)
    bands = np.stack([power[:, band == b].sum(1) for b in range(24)], axis=1)
    logs = np.log(bands + 1e-6)
    change = np.abs(np.diff(logs, axis=0)).mean(0) if len(logs) > 1 else np.zeros(24)
    loudness = np.log(np.square(padded).mean() + 1e-9)
    return np.concatenate([logs.mean(0), logs.std(0), change, [loudness, np.log(len(wave) / rate_hz + 1e-3)]]).astype(
        np.float32
    )


def series_features(series: np.ndarray) -> np.ndarray:
    """Mean, deviation and energy of each channel of a series [T, C], and the mean size of its steps, float32 [4·C].

    Values that were not measured (NaN) are left out; a channel with none counts as zeros.
    """
    seen = np.isfinite(series)
    count = np.maximum(seen.sum(0), 1)
    filled = np.where(seen, series, 0)
    mean = filled.sum(0) / count
    spread = np.sqrt(np.where(seen, (filled - mean) ** 2, 0).sum(0) / count)
    both = seen[1:] & seen[:-1]
    steps = np.where(both, np.abs(np.diff(filled, axis=0)), 0).sum(0) / np.maximum(both.sum(0), 1)
    return np.concatenate([mean, spread, (filled**2).sum(0) / count, steps]).astype(np.float32)


def logistic_regression(train: np.ndarray, labels: Sequence[str], test: np.ndarray) -> list[str]:
    """Labels for `test` [n, F] from a logistic regression (C = 1) on standardised features `train` [m, F]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    return [str(label) for label in model.fit(train, list(labels)).predict(test)]


def commonest(labels: Sequence[str]) -> tuple[str, float]:
    """The commonest label and its share; among equally common ones the first in the alphabet."""
    label, count = min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    return label, count / len(labels)
