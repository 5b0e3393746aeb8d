"""Pictures as cells of colour and oriented gradients, after the histograms of Dalal & Triggs (CVPR 2005)."""

from __future__ import annotations

import functools

import numpy as np

_FLOOR = 0.01  # of energy: what is flat stays near zero instead of being blown up to contrast


def cells(pixels: np.ndarray, cell_px: int, orientations: int) -> np.ndarray:
    """uint8 [height, width, 3] -> float32 [height / cell_px, width / cell_px, 3 + orientations].

    Colour is the cell's mean in [-1, 1]. An orientation is how strongly the brightness changes in that direction
    (undirected, over half a turn), averaged over the cell and its neighbours and divided by the energy around it, so
    that a drawing's lines count alike in light and dark colours; shifted to about [-0.5, 1.5]. Sides must be multiples
    of `cell_px`.
    """
    planes = pixels.astype(np.float32).transpose(2, 0, 1)
    colour = _averaged(planes, cell_px) / np.float32(127.5) - 1
    if not orientations:
        return colour.transpose(1, 2, 0)
    energy = _smoothed(_averaged(_energies(planes.sum(axis=0) / np.float32(765), orientations), cell_px), (0.25, 0.5))
    around = _smoothed(np.einsum("ohw,ohw->hw", energy, energy)[None], (1 / 3, 1 / 3))
    energy *= 2 / np.sqrt(around + np.float32(_FLOOR))
    energy -= 0.5
    return np.concatenate([colour, energy]).transpose(1, 2, 0)


def _energies(grey: np.ndarray, orientations: int) -> np.ndarray:
    """[orientations, height, width] of grey [height, width] in [0, 1].

    The strength of the gradient times the squared, rectified cosine of twice its angle to the orientation; no angle is
    taken, since cosine and sine of the doubled angle are polynomials of the gradient over its squared strength.
    """
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    np.subtract(grey[2:], grey[:-2], out=down[1:-1])
    np.subtract(grey[:, 2:], grey[:, :-2], out=right[:, 1:-1])
    squared = down * down + right * right
    cosine, sine = _centres(orientations)
    made = cosine * (right * right - down * down) + sine * (2 * right * down)
    np.maximum(made, 0, out=made)
    made *= made
    made *= 2 / (squared * np.sqrt(squared) + np.float32(1e-9))
    return made


@functools.cache
def _centres(orientations: int) -> np.ndarray:
    """[2, orientations, 1, 1]: cosine and sine of the doubled centre of each orientation."""
    doubled = 2 * np.pi * np.arange(orientations) / orientations
    return np.stack([np.cos(doubled), np.sin(doubled)]).astype(np.float32)[:, :, None, None]


def _averaged(planes: np.ndarray, cell_px: int) -> np.ndarray:
    """Means over cells of [depth, height, width]."""
    n = cell_px
    total = sum(planes[:, row::n, column::n] for row in range(n) for column in range(n))
    return np.asarray(total) / np.float32(n * n)


def _smoothed(planes: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """A separable 3 x 3 kernel, `weights` of the neighbours and of the middle, edges repeated."""
    beside, middle = (np.float32(weight) for weight in weights)
    padded = np.concatenate([planes[:, :1], planes, planes[:, -1:]], axis=1)
    planes = beside * (padded[:, :-2] + padded[:, 2:]) + middle * planes
    padded = np.concatenate([planes[:, :, :1], planes, planes[:, :, -1:]], axis=2)
    return beside * (padded[:, :, :-2] + padded[:, :, 2:]) + middle * planes
