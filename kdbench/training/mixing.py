"""Images mixed in pairs, with the labels that belong to them: mixup, cutmix, and both on a part of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import UsageError

Kind = Literal["mixup", "cutmix"]


@dataclass
class Mixed:
    """A batch of mixed images."""

    x: Tensor
    """(B, 3, H, W)."""
    target: Tensor
    """(B, C) class probabilities; rows of images without a label on either side sum to less than 1."""
    share: Tensor
    """(B,) share of the first image of each pair, in [0, 1]; 1 where an image is as it was."""

    def __len__(self) -> int:
        return len(self.x)


def shares(size: int, alpha: float, rng: np.random.Generator, *, keep: float = 0.0, replacement: bool = True) -> Tensor:
    """(size,) shares drawn from Beta(alpha, alpha), one per sample; ``int(keep * size)`` of them are set to 1.

    Which ones is drawn with or without ``replacement``. With it, as in the released code of Choi et al. (WACV 2023), a
    position can be drawn again, and exp(-keep) of a large batch stays mixed (41 % for 0.9) instead of 1 - keep.
    """
    if alpha <= 0 or not 0 <= keep <= 1:
        raise UsageError(f"mixing expected alpha > 0 and keep between 0 and 1, not {alpha} and {keep}")
    drawn = rng.beta(alpha, alpha, size)
    count = int(keep * size)
    drawn[rng.integers(0, size, count) if replacement else rng.permutation(size)[:count]] = 1.0
    return torch.from_numpy(drawn).float()


def one_hot(y: Tensor, classes: int) -> Tensor:
    """(B, C) float32 one-hot rows of labels (B,); zeros for -1."""
    return F.one_hot(y.clamp(min=0), classes).float() * (y >= 0).float().unsqueeze(1)


def mix(
    x: Tensor,
    y: Tensor,
    classes: int,
    rng: np.random.Generator,
    *,
    alpha: float = 1.0,
    keep: float = 0.0,
    replacement: bool = True,
    kind: Kind = "mixup",
) -> Mixed:
    """Pairs of two permutations of a batch, each pair mixed with its own share (see :func:`shares`).

    ``mixup``: share x_1 + (1 - share) x_2 (Zhang et al., ICLR 2018, equation 1). ``cutmix``: a rectangle of x_2 with
    1 - share of the area, cut at the border, is put into x_1 at a place of its own, and the share becomes that of the
    pixels that are left (Yun et al., ICCV 2019, section 3.1). Targets are mixed like the images. ``keep`` = 0 mixes
    the whole batch, larger values a part of it. Raises ``UsageError`` for alpha <= 0 or keep outside of [0, 1].
    """
    b = len(x)
    share = shares(b, alpha, rng, keep=keep, replacement=replacement)
    first, second = (torch.from_numpy(rng.permutation(b)).to(x.device) for _ in range(2))
    if kind == "cutmix":
        inside = rectangles(1 - share, x.shape[-2:], rng).to(x.device)
        mixed = torch.where(inside[:, None], x[second], x[first])
        share = 1 - inside.float().mean((1, 2))
    else:
        share = share.to(x.device)
        weight = share.view(b, *[1] * (x.dim() - 1))
        mixed = weight * x[first] + (1 - weight) * x[second]
    one, other = one_hot(y[first], classes), one_hot(y[second], classes)
    return Mixed(mixed, share[:, None] * one + (1 - share)[:, None] * other, share)


def rectangles(area: Tensor, shape: tuple[int, int] | torch.Size, rng: np.random.Generator) -> Tensor:
    """(B, H, W) bool: rectangles of the image's form with uniform centres that cover ``area`` (B,) of it, or less.

    What reaches beyond the border is cut off.
    """
    h, w = shape
    side = area.clamp(0, 1).sqrt()[:, None]
    inside = []
    for length in (h, w):
        centre = torch.from_numpy(rng.integers(0, length, len(area)))[:, None]
        half = (side * length).floor() / 2
        position = torch.arange(length)[None]
        inside.append((position >= centre - half) & (position < centre + half))
    return inside[0][:, :, None] & inside[1][:, None, :]
