"""Real handwritten digits: the 1797 images of 8x8 pixels that come with scikit-learn."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import UsageError

CLASSES = 10
NATIVE = 8
"""Pixels of a side."""


@lru_cache(maxsize=1)
def glyphs() -> tuple[Tensor, Tensor]:
    """Ink (1797, 1, 8, 8) float32 in [0, 1] and classes (1797,) int64; not to be changed in place."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.from_numpy(found.images.astype(np.float32) / 16)
    return ink[:, None], torch.from_numpy(found.target.astype(np.int64))


def images(size: int = NATIVE) -> tuple[Tensor, Tensor]:
    """Images (1797, 1, size, size) float32 in [-1, 1], ink is 1, and classes (1797,); larger ones are bilinear."""
    ink, labels = glyphs()
    if size != NATIVE:
        ink = F.interpolate(ink, size=(size, size), mode="bilinear", align_corners=False)
    return ink * 2 - 1, labels


@lru_cache(maxsize=8)
def halves(seed: int) -> dict[str, Tensor]:
    """Rows of each split, int64, stratified by class: ``train`` is one half, ``val`` a quarter of the other, and
    ``test`` what is left."""
    from sklearn.model_selection import train_test_split

    labels = glyphs()[1].numpy()
    train, other = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    test, val = train_test_split(other, test_size=0.25, stratify=labels[other], random_state=seed)
    return {name: torch.from_numpy(np.sort(rows)) for name, rows in (("train", train), ("val", val), ("test", test))}


def rows_of(split: str, seed: int, count: int | None = None) -> Tensor:
    """Rows of a split, or ``count`` of them in a fixed random order; more than there are is a ``UsageError``."""
    rows = halves(seed)[split]
    if count is None:
        return rows
    if count > len(rows):
        raise UsageError(f"data.{split} asks for {count} digits, but there are {len(rows)}")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:count]]
