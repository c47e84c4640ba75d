"""Random views of images for contrastive learning: normalised images (B, 3, P, P) in and out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.tracks.vision.batches import ROLL, roll

GREY = 0.2
"""Probability that a view with colour jitter loses its colour."""


def crop(x: Tensor, generator: torch.Generator, smallest: float) -> Tensor:
    """A random square window of each image, at least ``smallest`` of its side, enlarged to the image's size."""
    scale, dx, dy = torch.rand(3, len(x), generator=generator).to(x)
    scale = smallest + (1 - smallest) * scale
    shift = 1 - scale  # how far the centre can move before the window leaves the image
    theta = torch.zeros(len(x), 2, 3, device=x.device, dtype=x.dtype)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = shift * (2 * dx - 1), shift * (2 * dy - 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def colour_jitter(x: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Each channel's contrast times U(1 - s, 1 + s) and its mean moved by U(-s, s); every fifth image in grey."""
    gain, offset = (2 * torch.rand(2, len(x), 3, 1, 1, generator=generator).to(x) - 1) * strength
    mean = x.mean((2, 3), keepdim=True)
    made = mean + (1 + gain) * (x - mean) + offset
    grey = torch.rand(len(x), 1, 1, 1, generator=generator).to(x) < GREY
    return torch.where(grey, made.mean(1, keepdim=True).expand_as(made), made)


def random_view(
    generator: torch.Generator,
    *,
    reach: int = ROLL,
    smallest: float = 1.0,
    jitter: float = 0.5,
    noise: float = 0.1,
    flip: bool = False,
) -> Callable[[Tensor], Tensor]:
    """A function that draws a view of each image: window, shift by up to ``reach`` pixels, mirror, colours, noise.

    ``smallest`` in (0, 1] is the smallest side of the window, ``jitter`` the strength of the colours' change,
    ``noise`` the standard deviation of pixel noise, both in units of normalised pixels. ``flip`` mirrors every other
    image; it is not safe where left and right make a difference, as for digits.
    """

    def view(x: Tensor) -> Tensor:
        if smallest < 1:
            x = crop(x, generator, smallest)
        if reach:
            x = roll(x, generator, reach)
        if flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator).to(x) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        if jitter:
            x = colour_jitter(x, generator, jitter)
        return x + noise * torch.randn(x.shape, generator=generator).to(x)

    return view
