"""Three mixtures in the plane, and points drawn from them.

``ring`` is the common test of mode collapse (8 Gaussians on a circle), ``grid`` that of coverage (25 on a grid), here
with weights that differ tenfold, ``checker`` the checkerboard with a narrow Gaussian in each dark square, so that its
score is known too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.task import seed_of
from kdbench.tracks.diffusion.data.specs import PointsData
from kdbench.tracks.diffusion.networks.gmm import Mixture

RING = (8, 2.0, 0.15)
"""Gaussians, radius, std."""
GRID = (5, 1.0, 0.1)
"""Gaussians a side, distance, std."""
CHECKER = (8, 0.5, 0.1)
"""Squares a side, side of a square, std."""
GOLDEN = (math.sqrt(5) - 1) / 2


def ring(scale: float) -> Mixture:
    """Eight Gaussians on a circle; neighbours are a class, so that each of the four has two."""
    count, radius, std = RING
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    return Mixture(scale * means, scale * std, labels=torch.arange(count) // 2 + 1)


def grid(scale: float) -> Mixture:
    """25 Gaussians; the heaviest has ten times the weight of the lightest, and heavy and light ones are mixed."""
    side, distance, std = GRID
    axis = distance * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    rank = torch.arange(side**2, dtype=torch.float64) * 7 % side**2  # 7 has no factor with 25: every rank occurs once
    return Mixture(scale * torch.cartesian_prod(axis, axis), scale * std, 10 ** (rank / (side**2 - 1)))


def checker(scale: float) -> Mixture:
    """A Gaussian in each of the 32 dark squares of a checkerboard."""
    side, width, std = CHECKER
    square = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    dark = square[square.sum(1) % 2 == 0]
    return Mixture(scale * width * (dark.double() - (side - 1) / 2), scale * std)


LAYOUTS: dict[str, Callable[[float], Mixture]] = {"ring": ring, "grid": grid, "checker": checker}


def mixture_of(data: PointsData) -> Mixture:
    """The mixture that the points of a specification are drawn from."""
    return LAYOUTS[data.layout](data.scale)


def make_points(data: PointsData, split: str) -> tuple[Tensor, Tensor]:
    """Points (N, 2) float32 of a split and their classes (N,) int64, 0 where the layout has none.

    Among the first n points of validation and test data, for every n, modes have their exact shares up to rounding:
    distances to them are not about chance differences of these, which weigh most where modes are far apart.
    """
    mixture, count = mixture_of(data), getattr(data, split)
    generator = torch.Generator().manual_seed(seed_of("points", data.layout, data.seed, split))
    if split == "train":
        points, components = mixture.sample(count, generator)
    else:
        places = ((torch.arange(count, dtype=torch.float64) + 0.5) * GOLDEN) % 1  # evenly over [0, 1) at any count
        components = torch.searchsorted(mixture.weights.cumsum(0), places).clamp_max(len(mixture.weights) - 1)
        points = mixture.sample_components(components, generator)
    return points, mixture.labels[components]
