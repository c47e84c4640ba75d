"""Real photographs that come with scikit-image and scikit-learn: which picture is a crop from?

Twenty pictures, brought to a shorter side of 256 pixels and cut into tiles of 64 x 64. The tiles of a picture are split
60/20/20 into train, val and test, so that a test crop shows a part of the picture that no training crop shows. An image
is a window inside one tile, of 0.6 to 1 of its side, mirrored or not, with its own gain per channel, contrast and pixel
noise: colour alone does not tell the picture. Every tile has ``VIEWS`` of them, each decided by its number.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdbench.errors import UsageError
from kdbench.tracks.vision.data.items import Items
from kdbench.tracks.vision.data.real import PARTS, in_turn, stratified

TILE = 64
"""Side of a tile, in pixels of the picture whose shorter side has ``SIDE``."""
SIDE = 256
VIEWS = 8
"""Images per tile."""

PLACES = {"skimage": "data", "sklearn": "datasets/images"}
"""Folder with pictures, by package."""
PICTURES: dict[str, str] = {
    "astronaut.png": "skimage",
    "brick.png": "skimage",
    "camera.png": "skimage",
    "cell.png": "skimage",
    "chelsea.png": "skimage",
    "china.jpg": "sklearn",
    "clock_motion.png": "skimage",
    "coffee.png": "skimage",
    "coins.png": "skimage",
    "flower.jpg": "sklearn",
    "grass.png": "skimage",
    "gravel.png": "skimage",
    "hubble_deep_field.jpg": "skimage",
    "ihc.png": "skimage",
    "moon.png": "skimage",
    "motorcycle_left.png": "skimage",
    "page.png": "skimage",
    "retina.jpg": "skimage",
    "rocket.jpg": "skimage",
    "text.png": "skimage",
}
"""Package of each picture; the classes in this order."""
NAMES = [name.rsplit(".", 1)[0] for name in PICTURES]


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"the data source pictures needs the package {package}", hint="pip install 'kdbench[data]'")
    return Path(found.submodule_search_locations[0]) / PLACES[package]


@lru_cache(maxsize=1)
def _tiles() -> tuple[np.ndarray, np.ndarray]:
    """Tiles (N, 64, 64, 3) uint8 of all pictures and their class (N,) int64."""
    from PIL import Image

    tiles, labels = [], []
    for c, (name, package) in enumerate(PICTURES.items()):
        with Image.open(_folder(package) / name) as file:
            picture = file.convert("RGB")
        scale = SIDE / min(picture.size)
        picture = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
        grid = pixels[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, 3)
        tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3))
        labels.append(np.full(rows * columns, c, dtype=np.int64))
    return np.concatenate(tiles), np.concatenate(labels)


def items(seed: int) -> tuple[dict[str, Items], int]:
    """The parts train, val and test, and the number of classes. No two parts share a tile.

    Raises ``UsageError`` where a package with pictures is missing.
    """
    labels = _tiles()[1]
    rng = np.random.default_rng([seed, len(PARTS)])
    parts = {}
    for name, tiles in zip(PARTS, stratified(labels, seed, (0.6, 0.2, 0.2)), strict=True):
        numbers = (tiles[:, None] * VIEWS + np.arange(VIEWS)).ravel()
        numbers = in_turn(np.repeat(labels, VIEWS), rng.permutation(numbers))
        parts[name] = Items(numbers, labels[numbers // VIEWS], labels[numbers // VIEWS])
    return parts, len(PICTURES)


def render(numbers: np.ndarray, seed: int, size: int) -> np.ndarray:
    """Images (N, 3, size, size) uint8; number ``n`` is view ``n % VIEWS`` of tile ``n // VIEWS``."""
    from PIL import Image

    tiles = _tiles()[0]
    out = np.empty((len(numbers), 3, size, size), dtype=np.uint8)
    for row, number in enumerate(numbers):
        rng = np.random.default_rng([seed, int(number)])
        side = rng.uniform(0.6, 1) * TILE
        x, y = rng.uniform(0, TILE - side, size=2)
        tile = Image.fromarray(tiles[number // VIEWS])
        window = tile.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
        pixels = np.asarray(window, dtype=np.float64)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        centre, contrast = pixels.mean(), rng.uniform(0.5, 1.2)
        pixels = (contrast * (pixels - centre) + centre) * rng.uniform(0.6, 1.4, size=3)
        pixels = pixels + rng.normal(0, 8, size=pixels.shape)
        out[row] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return out
