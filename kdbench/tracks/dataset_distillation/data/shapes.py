"""``shapes16``: RGB images of 16 x 16 pixels of ten shapes, whose colours, places, sizes and angles say nothing.

Shape and background have random colours, so that the mean image of a class is grey; clutter in other colours lies
behind the shape and noise over everything. Content is bytes, so that one digest holds on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SIZE = 16
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "bar-h", "bar-v", "L", "T")
SUBPIXELS = 2
"""Samples along a side of a pixel."""
SPLITS = {"train": 0, "val": 1, "test": 2}


def _box(u: Floats, v: Floats, cu: float, cv: float, hu: float, hv: float) -> NDArray[np.bool_]:
    """Within ``hu`` and ``hv`` of (cu, cv)."""
    return (np.abs(u - cu) < hu) & (np.abs(v - cv) < hv)


def inside(shape: int, u: Floats, v: Floats) -> NDArray[np.bool_]:
    """Which points (u to the right, v downwards, the shape within about [-1, 1]) belong to a shape."""
    r = np.hypot(u, v)
    match SHAPES[shape]:
        case "circle":
            return r < 0.85
        case "square":
            return _box(u, v, 0, 0, 0.75, 0.75)
        case "triangle":
            return (v < 0.7) & (v > -0.9 + 1.75 * np.abs(u))
        case "cross":
            return _box(u, v, 0, 0, 0.25, 0.95) | _box(u, v, 0, 0, 0.95, 0.25)
        case "ring":
            return (r < 0.95) & (r > 0.5)
        case "star":
            return r < 0.35 + 0.65 * np.abs(np.cos(2.5 * np.arctan2(u, -v))) ** 2.0
        case "bar-h":
            return _box(u, v, 0, 0, 1.0, 0.28)
        case "bar-v":
            return _box(u, v, 0, 0, 0.28, 1.0)
        case "L":
            return _box(u, v, -0.5, 0, 0.25, 0.9) | _box(u, v, 0, 0.65, 0.75, 0.25)
        case _:
            return _box(u, v, 0, -0.65, 0.85, 0.25) | _box(u, v, 0, 0, 0.25, 0.9)


def _colours(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Of shape and background, (N, 3) each in [0, 1], at least 0.5 apart."""
    back = rng.uniform(0, 1, (count, 3))
    front = rng.uniform(0, 1, (count, 3))
    for _ in range(50):
        near = np.linalg.norm(front - back, axis=1) < 0.5
        if not near.any():
            break
        front[near] = rng.uniform(0, 1, (int(near.sum()), 3))
    front[near] = np.where(back[near] > 0.5, back[near] - 0.5, back[near] + 0.5)
    return front, back


def images(split: str, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 16, 16) and their shapes (N,), every shape equally often up to one; ``split`` is train, val or
    test."""
    rng = np.random.default_rng([seed, SPLITS[split], 1600])
    labels = rng.permutation(np.arange(count) % len(SHAPES)).astype(np.int64)
    front, back = _colours(rng, count)
    angle = rng.uniform(-np.pi / 9, np.pi / 9, count)
    scale = rng.uniform(3.6, 6.2, count)
    centre = SIZE / 2 + rng.uniform(-2.0, 2.0, (count, 2))
    dots = rng.uniform(0, SIZE, (count, 3, 2))
    reach = rng.uniform(0.6, 1.5, (count, 3))
    paint = rng.uniform(0, 1, (count, 3, 3))
    side = (np.arange(SIZE * SUBPIXELS) + 0.5) / SUBPIXELS
    y, x = np.meshgrid(side, side, indexing="ij")
    out = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for i in range(count):
        canvas = np.broadcast_to(back[i][:, None, None], (3, *x.shape)).copy()
        for (dx, dy), radius, colour in zip(dots[i], reach[i], paint[i], strict=True):
            spot = (np.abs(x - dx) < radius) & (np.abs(y - dy) < radius)
            canvas[:, spot] = colour[:, None]
        dx, dy = x - centre[i, 0], y - centre[i, 1]
        cos, sin = np.cos(angle[i]), np.sin(angle[i])
        mask = inside(int(labels[i]), (cos * dx + sin * dy) / scale[i], (cos * dy - sin * dx) / scale[i])
        canvas[:, mask] = front[i][:, None]
        small = canvas.reshape(3, SIZE, SUBPIXELS, SIZE, SUBPIXELS).mean((2, 4))
        out[i] = np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8)
    noise = np.rint(rng.normal(0, 12, out.shape)).astype(np.int64)
    return np.clip(out + noise, 0, 255).astype(np.uint8), labels
