"""Drift of images to extremes: pixels at the ends of their range, contrast, and power by spatial frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVEL = 0.95
"""Size from which on a pixel of an image in [-1, 1] is saturated."""


def saturation(x: Tensor, level: float = LEVEL) -> float:
    """Share of the pixels with |x| above ``level``."""
    return float((x.abs() > level).double().mean())


def variance_ratio(x: Tensor, real: Tensor) -> float:
    """Variance of all pixels of ``x`` over that of ``real``."""
    return float(x.double().var() / real.double().var())


def band_power(x: Tensor, bands: int = 4) -> Tensor:
    """(bands,) mean power of images (B, C, H, W) by spatial frequency, the lowest band first; float64.

    Bands are rings of equal width between 0 and the Nyquist frequency of an axis; corners beyond it belong to the last,
    the mean of an image to the first.
    """
    power = torch.fft.fft2(x.double(), norm="ortho").abs() ** 2
    height, width = x.shape[-2:]
    rows, columns = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    radius = (rows[:, None] ** 2 + columns[None] ** 2).sqrt() / 0.5
    band = (radius * bands).long().clamp_max(bands - 1)
    mean = power.flatten(0, -3).mean(0).cpu()
    return torch.stack([mean[band == number].mean() for number in range(bands)])


def drift(x: Tensor, real: Tensor) -> dict[str, float]:
    """How samples differ from real images, (B, C, H, W) each, in [-1, 1].

    ``saturation``, ``saturation_gap`` (|share of saturated pixels - that of real ones|), ``variance_ratio``,
    ``contrast_gap`` (|ln variance ratio|) and ``band0`` ... ``band3``, ln of the power over that of real images.
    """
    own, theirs, ratio = saturation(x), saturation(real), variance_ratio(x, real)
    bands = (band_power(x) / band_power(real)).log()
    return {
        "saturation": own,
        "saturation_gap": abs(own - theirs),
        "variance_ratio": ratio,
        "contrast_gap": abs(math.log(ratio)),
        **{f"band{number}": float(value) for number, value in enumerate(bands)},
    }
