"""How a sharp image becomes one of low resolution: blur, subsampling, noise and the losses of compression.

The order is that of the degradations that real photographs go through (Wang et al., ICCVW 2021, section 3.1).
Compression is the part of JPEG that loses something: the discrete cosine transform of blocks, and coefficients rounded
to steps that grow with their frequency. All images are (B, C, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 4
"""Pixels of a side of a transformed block: what images of 32 pixels have left at an eighth of their size."""


def gaussian_kernel(std: float) -> Tensor:
    """(2 r + 1,) weights with sum 1 in float64, cut at r = 3 std."""
    radius = max(1, math.ceil(3 * std))
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (places / std) ** 2)
    return weights / weights.sum()


def blur(x: Tensor, std: float) -> Tensor:
    """Gaussian blur with ``std`` in pixels; borders repeat their last pixel. 0 leaves ``x`` as it is."""
    if std == 0:
        return x
    kernel = gaussian_kernel(std).to(x)
    radius, channels = len(kernel) // 2, x.shape[1]
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    down = F.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(down, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


@lru_cache(maxsize=4)
def dct_matrix(size: int) -> Tensor:
    """(size, size) float64 matrix of the orthonormal DCT-II: rows are frequencies."""
    places = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (places[None] + 0.5) * places[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def quantized(x: Tensor, step: float, block: int = BLOCK) -> Tensor:
    """Coefficients (u, v) of each block rounded to multiples of step (1 + u + v); 0 leaves ``x`` as it is.

    Raises ``ValueError`` where the sides of ``x`` are no multiples of ``block``.
    """
    if step == 0:
        return x
    height, width = x.shape[-2:]
    if height % block or width % block:
        raise ValueError(f"an image of {height} x {width} pixels has no whole blocks of {block}")
    matrix = dct_matrix(block).to(x)
    frequency = torch.arange(block, device=x.device)
    steps = step * (1 + frequency[:, None] + frequency).to(x)
    tiles = x.unflatten(-2, (-1, block)).unflatten(-1, (-1, block)).transpose(-3, -2)  # (B, C, rows, columns, b, b)
    rounded = torch.round(matrix @ tiles @ matrix.T / steps) * steps
    return (matrix.T @ rounded @ matrix).transpose(-3, -2).flatten(-2).flatten(-3, -2)


def lowered(
    x: Tensor, factor: int, generator: torch.Generator, *, blur_std: float, noise_std: float, step: float
) -> Tensor:
    """An image of 1/``factor`` of the sides of ``x`` (B, C, H, W), clamped to [-1, 1].

    ``blur_std`` is in pixels of the result, so that every factor is blurred as much as it is subsampled; ``noise_std``
    and ``step`` (:func:`quantized`) are in units of [-1, 1]. The pixel in the middle of each cell is taken: the mean
    of the middle four where the factor is even. Noise is drawn from ``generator``.

    Raises ``ValueError`` where the sides are no multiples of ``factor``.
    """
    if factor < 1 or x.shape[-1] % factor or x.shape[-2] % factor:
        raise ValueError(f"an image of {x.shape[-2]} x {x.shape[-1]} pixels is not divided by {factor}")
    soft = blur(x, blur_std * factor)
    small = soft
    if factor > 1:
        middle, count = (factor - 1) // 2, 2 - factor % 2
        offsets = range(middle, middle + count)
        parts = [soft[..., i::factor, j::factor] for i in offsets for j in offsets]
        small = torch.stack(parts).mean(0)
    noise = torch.randn(small.shape, generator=generator).to(small)
    return quantized((small + noise_std * noise).clamp(-1, 1), step).clamp(-1, 1)


def magnified(low: Tensor, factor: int) -> Tensor:
    """Bicubic interpolation to ``factor`` times the sides, clamped to [-1, 1]: the baseline of super-resolution.

    With the kernel of Pillow and Matlab (a = -0.5), which keeps slopes.
    """
    large = F.interpolate(low, scale_factor=factor, mode="bicubic", align_corners=False, antialias=True)
    return large.clamp(-1, 1)
