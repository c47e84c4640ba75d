"""How far points are from a mixture whose density is known.

Distances between samples (:func:`sliced_w2`, :func:`mmd`) are biased or noisy in a way that depends on their number:
only equal numbers compare. Divergences (:func:`kl_of_samples`) need a density where a generator gives samples alone, so
both sides are smoothed by the same Gaussian; what is known of the mixture stays exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.networks.gmm import Mixture

PROJECTIONS = 200
"""Directions of :func:`sliced_w2`."""
NEAR = 3.0
"""Standard deviations within which a point belongs to a mode."""
HIT = 0.2
"""Share of its expected mass that a mode has at least, to be hit."""
FLOOR = 1e-300
"""Least density of a kernel estimate; a sample within 37 bandwidths gives more."""
ROWS = 65_536
"""Points of a grid at a time."""
LARGEST = 2_000
"""Points a side of a grid has at most."""


def directions(dim: int, count: int = PROJECTIONS) -> Tensor:
    """(count, dim) unit vectors, float64: evenly over the half circle in the plane, else drawn with a fixed seed."""
    if dim == 2:
        angle = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return vectors / vectors.norm(dim=1, keepdim=True)


def sliced_w2(x: Tensor, y: Tensor, projections: int = PROJECTIONS) -> float:
    """Sliced Wasserstein-2 distance of samples x and y, (N, D) each, in the unit of the points.

    Root of the mean over fixed directions of the squared distance of the projections, which is exact: in one dimension
    the k-th smallest goes to the k-th smallest (Rabin et al., 2011). Raises ``UsageError`` for unequal numbers.
    """
    if x.shape != y.shape:
        raise UsageError(f"the sliced distance compares equally many points, not {list(x.shape)} and {list(y.shape)}")
    axes = directions(x.shape[1], projections).to(x.device)
    a, b = ((points.double() @ axes.T).sort(dim=0).values for points in (x, y))
    return float((a - b).square().mean().sqrt())


def mmd(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Squared maximum mean discrepancy of x (N, D) and y (M, D) under the kernel exp(-d^2 / (2 bandwidth^2)).

    The unbiased estimate (Gretton et al., JMLR 2012, lemma 6), which may be slightly below 0 where both are samples of
    the same distribution. float64.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (torch.cdist(a, b).square() / (-2 * bandwidth**2)).exp()

    x, y = x.double(), y.double()
    own = [(kernel(each, each).sum() - len(each)) / (len(each) * (len(each) - 1)) for each in (x, y)]
    return float(own[0] + own[1] - 2 * kernel(x, y).mean())


def mmd_bandwidth(mixture: Mixture) -> float:
    """Bandwidth of :func:`mmd` that tells the modes apart: half the median distance of a mean to the nearest other.

    For a single component its standard deviation.
    """
    if len(mixture.means) == 1:
        return float(mixture.stds[0])
    distance = torch.cdist(mixture.means, mixture.means).fill_diagonal_(math.inf)
    return float(distance.min(1).values.median()) / 2


# --- divergences ------------------------------------------------------------------------------------------------------


def _axes(low: Tensor, high: Tensor, step: float) -> list[Tensor]:
    """Evenly spaced coordinates, one tensor a dimension, no further apart than ``step``."""
    counts = [math.ceil(float(width) / step) + 1 for width in high - low]
    if max(counts) > LARGEST:
        raise UsageError(f"a grid of {max(counts)} points a side is too fine: the mixture is too narrow for its width")
    ends = zip(low.tolist(), high.tolist(), counts, strict=True)
    return [torch.linspace(a, b, count, dtype=torch.float64, device=low.device) for a, b, count in ends]


def _log_density(mixture: Mixture, axes: list[Tensor]) -> Tensor:
    """(G1 G2 ...,) log density of a mixture at all points of a grid."""
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return torch.cat([mixture.log_density(part) for part in points.split(ROWS)])


def _cell(axes: list[Tensor]) -> float:
    return math.prod(float(axis[1] - axis[0]) for axis in axes)


def kl_of_mixtures(p: Mixture, q: Mixture) -> float:
    """KL(p || q) in nats, by quadrature on an even grid; exact to six digits or more. One or two dimensions.

    Raises ``UsageError`` for more dimensions, and where a component is too narrow for a grid over all of ``p``.
    """
    if p.dim != q.dim or p.dim > 2:
        raise UsageError(f"the divergence is computed in one or two dimensions, not in {p.dim} and {q.dim}")
    margin = 8 * p.stds[:, None]
    low, high = (p.means - margin).min(0).values, (p.means + margin).max(0).values
    axes = _axes(low, high, float(torch.cat([p.stds, q.stds]).min()) / 2)
    log_p, log_q = _log_density(p, axes), _log_density(q, axes)
    return float((log_p.exp() * (log_p - log_q)).sum()) * _cell(axes)


def kl_of_samples(x: Tensor, mixture: Mixture, bandwidth: float | None = None) -> tuple[float, float]:
    """Reverse KL(samples || mixture) and forward KL(mixture || samples) in nats, for points ``x`` (N, 2).

    Both are the divergence between densities to which the same Gaussian of std ``bandwidth`` (default: the narrowest
    component's) was added: the kernel estimate of the samples with that kernel, and the mixture at that noise level,
    which is exact. Integrals are sums over a grid with two points per bandwidth. Smoothing makes divergences smaller;
    finite numbers make them larger, by about A / (8 pi N bandwidth^2) where the samples cover an area A. Points far
    outside of the mixture count as on the edge of the grid, which is half as wide again as the mixture with six
    standard deviations around it, and a density below 1e-300 as 1e-300, so that both are finite.
    """
    if mixture.dim != 2 or x.ndim != 2 or x.shape[1] != 2:
        raise UsageError(f"the estimate is for points of the plane, not for {list(x.shape)}")
    h = float(mixture.stds.min()) if bandwidth is None else bandwidth
    smooth = mixture.at(1.0, h)
    margin = 6 * smooth.stds[:, None]
    low, high = (smooth.means - margin).min(0).values, (smooth.means + margin).max(0).values
    centre, half = (low + high) / 2, 0.75 * (high - low)
    low, high = centre - half, centre + half
    axes = _axes(low, high, h / 2)
    points = x.double().to(low.device).clamp(low + 6 * h, high - 6 * h)
    # The kernel is a product over the coordinates, so that the estimate is one product of matrices.
    rows, columns = ((-0.5 * ((axis - points[:, d, None]) / h).square()).exp() for d, axis in enumerate(axes))
    density = (rows.T @ columns).flatten() / (2 * math.pi * h**2 * len(points))
    log_p, log_q = density.clamp_min(FLOOR).log(), _log_density(smooth, axes)
    gap, cell = log_p - log_q, _cell(axes)
    return float((density * gap).sum()) * cell, -float((log_q.exp() * gap).sum()) * cell


# --- modes ------------------------------------------------------------------------------------------------------------


@dataclass
class Modes:
    """Where the points of a sample lie among the modes of a mixture."""

    expected: Tensor
    """(K,) weights of the components."""
    shares: Tensor
    """(K,) share of the points whose nearest mode it is, in standard deviations; sums to 1."""
    near: Tensor
    """(K,) share of the points that moreover lie within three standard deviations of it."""
    stray: Tensor
    """(N,) bool: further than that from every mode."""

    @property
    def hit(self) -> Tensor:
        """(K,) bool: has at least a fifth of its expected mass within three standard deviations."""
        return self.near >= HIT * self.expected

    @property
    def l1(self) -> float:
        """Sum over the modes of |share - expected|; in [0, 2]."""
        return float((self.shares - self.expected).abs().sum())


def modes_of(x: Tensor, mixture: Mixture) -> Modes:
    """Assign points (N, D) to the modes of a mixture."""
    distance = torch.cdist(x.to(mixture.means), mixture.means) / mixture.stds
    least, nearest = distance.min(1)
    near, count = least <= NEAR, len(mixture.means)
    shares = torch.bincount(nearest, minlength=count).to(mixture.weights) / len(x)
    within = torch.bincount(nearest[near], minlength=count).to(mixture.weights) / len(x)
    return Modes(mixture.weights, shares, within, ~near)


def class_accuracy(x: Tensor, tokens: Tensor, mixture: Mixture) -> Tensor:
    """(N,) 1 where the most probable class of a point is the one that was asked for, (N,) tokens from 1 on."""
    found = mixture.class_log_probabilities(x.to(mixture.means)).argmax(1) + 1
    return (found == tokens.to(found.device)).double()
