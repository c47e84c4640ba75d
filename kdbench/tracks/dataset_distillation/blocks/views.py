"""Views of images: shifted and turned, and mixed in pairs. Draws come from numpy on the CPU, the same on every
device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.training.augmentors import affine
from kdbench.training.mixing import rectangles

Mix = Literal["none", "mixup", "cutmix"]
SHIFT = 0.125
"""Largest shift of the augmentation, as a share of the image's side."""
ANGLE = np.pi / 18
"""Largest rotation: 10 degrees."""


def _uniform(rng: np.random.Generator, low: float, high: float, count: int, like: Tensor) -> Tensor:
    return torch.from_numpy(rng.uniform(low, high, count)).to(like.device, like.dtype)


def mirrored(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (B, C, H, W), each mirrored from left to right with probability 1/2."""
    flip = torch.from_numpy(rng.integers(0, 2, len(x)) == 1).to(x.device)
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def augment(x: Tensor, rng: np.random.Generator, *, flip: bool = False) -> Tensor:
    """Images (B, C, H, W), each shifted by at most 1/8 of its side and turned by at most 10 degrees."""
    b = len(x)
    theta = x.new_zeros(b, 5)
    for column in (0, 1):
        theta[:, column] = _uniform(rng, -2 * SHIFT, 2 * SHIFT, b, x)  # affine counts in halves of the side
    theta[:, 2] = _uniform(rng, -ANGLE, ANGLE, b, x)
    x = affine(x, theta)
    return mirrored(x, rng) if flip else x


def resized_crop(x: Tensor, rng: np.random.Generator, *, smallest: float = 0.5) -> Tensor:
    """Images (B, C, H, W), each a square part of at least ``smallest`` of the area at full size; with gradients."""
    b = len(x)
    side = _uniform(rng, smallest, 1.0, b, x).sqrt()
    theta = x.new_zeros(b, 5)
    theta[:, 3] = -side.log()  # a positive scale enlarges
    for column in (0, 1):
        theta[:, column] = _uniform(rng, -1, 1, b, x) * (1 - side) / side
    return affine(x, theta)


@dataclass
class Mixed:
    """A batch whose images are mixed in pairs, all with the same share."""

    x: Tensor
    """(B, C, H, W)."""
    lam: float
    """Share of the first image of each pair, in [0, 1]."""
    perm: Tensor
    """(B,) int64: the second image of each pair."""
    box: Tensor | None
    """(H, W) bool, ``cutmix``: the pixels that come from the second image."""

    def interpolate(self, labels: Tensor) -> Tensor:
        """lam labels + (1 - lam) labels[perm] for any (B, K): exactly linear in the labels."""
        return self.lam * labels + (1 - self.lam) * labels[self.perm]


def mix(x: Tensor, kind: Mix, alpha: float, rng: np.random.Generator) -> Mixed:
    """A batch (B, C, H, W) mixed with a permutation of itself; lam ~ Beta(alpha, alpha) for the whole batch.

    ``cutmix``: a rectangle with 1 - lam of the area, cut at the border, comes from the second image, and lam becomes
    the share of pixels that are left (Yun et al., ICCV 2019). ``x`` itself is not changed. ``none``: lam = 1.
    """
    b = len(x)
    if kind == "none":
        return Mixed(x, 1.0, torch.arange(b, device=x.device), None)
    if alpha <= 0:
        raise UsageError(f"mixing expected alpha > 0, not {alpha}")
    lam = float(rng.beta(alpha, alpha))
    perm = torch.from_numpy(rng.permutation(b)).to(x.device)
    if kind == "mixup":
        return Mixed(lam * x + (1 - lam) * x[perm], lam, perm, None)
    box = rectangles(torch.tensor([1 - lam]), x.shape[-2:], rng)[0].to(x.device)
    return Mixed(torch.where(box, x[perm], x), 1 - float(box.float().mean()), perm, box)


@dataclass
class View:
    """A batch of a distilled set as a network sees it."""

    rows: Tensor
    """(B,) int64: positions in the set."""
    mixed: Mixed


def views(
    images: Tensor, size: int, epoch: int, seed: int, *, augmented: bool, flip: bool, kind: Mix, alpha: float
) -> Iterator[View]:
    """One epoch over images (N, C, H, W) in random order, ``size`` at a time; decided by ``seed`` and ``epoch``."""
    rng = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    for rows in order.split(size):
        x = images[rows]
        if augmented:
            x = augment(x, rng, flip=flip)
        yield View(rows, mix(x, kind, alpha, rng))
