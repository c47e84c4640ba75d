"""Photographs that come with scikit-learn, as grey patches of disjoint regions.

The two pictures (427 x 640 pixels, ``china.jpg`` and ``flower.jpg``) are cut by columns: 45 % of the width for
training, then 15 % for validation and 40 % for the test. No pixel is in two splits.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdbench.errors import UsageError

CUTS = (0.0, 0.45, 0.6, 1.0)
"""Where the regions of the splits begin and end, in parts of the width."""
SPLITS = ("train", "val", "test")
CONTENT = "3eaa7a8236dc2700"
"""Digest of the grey pictures."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


def luminance(pictures: np.ndarray) -> np.ndarray:
    """Colour pictures (..., 3) uint8 as grey ones (...) uint8."""
    return np.rint(pictures.astype(np.float64) @ LUMA).astype(np.uint8)


def digest(pictures: list[np.ndarray]) -> str:
    """16 hexadecimal digits of the SHA-256 of pictures and their shapes."""
    sha = hashlib.sha256()
    for picture in pictures:
        sha.update(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    return sha.hexdigest()[:16]


@lru_cache(maxsize=1)
def photographs() -> list[np.ndarray]:
    """Grey pictures (H, W) uint8, in the order of their names; not to be changed in place.

    Raises ``UsageError`` where they are others than expected: decoders of JPEG may differ.
    """
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    order = np.argsort([Path(name).name for name in found.filenames])
    pictures = [luminance(found.images[number]) for number in order]
    if digest(pictures) != CONTENT:
        raise UsageError(
            f"the photographs of scikit-learn have the digest {digest(pictures)}, not {CONTENT}",
            hint="Pillow with the usual libjpeg-turbo decodes them as expected",
        )
    return pictures


def region(width: int, split: str) -> tuple[int, int]:
    """First column of a split's region and the one after its last. Raises ``ValueError`` for an unknown split."""
    number = SPLITS.index(split)
    return round(CUTS[number] * width), round(CUTS[number + 1] * width)


def corners(height: int, width: int, split: str, size: int, stride: int) -> np.ndarray:
    """(N, 2) rows and columns of the patches of ``size`` pixels that lie inside a split's region."""
    low, high = region(width, split)
    rows = np.arange(0, height - size + 1, stride)
    columns = np.arange(low, high - size + 1, stride)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def patches(pictures: list[np.ndarray], split: str, size: int, stride: int) -> np.ndarray:
    """(N, size, size) uint8 patches of a split, picture by picture; raises ``ValueError`` where there is no room."""
    found = [
        picture[row : row + size, column : column + size]
        for picture in pictures
        for row, column in corners(*picture.shape, split, size, stride)
    ]
    if not found:
        raise ValueError(f"patches of {size} pixels do not fit into the {split} region")
    return np.stack(found)
