"""Generators and teachers on the real line, where every expectation is a sum over the nodes of a quadrature.

A generator is x = shift + scale b, b from a fixed mixture of Gaussians: its density is a mixture in closed form at
every noise level, and its samples depend on (shift, scale), which are what gradients are taken of.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.diffusion.networks.gmm import Mixture

BASE = Mixture([[-0.7], [0.9]], [0.35, 0.5], [0.6, 0.4])
TEACHER = Mixture([[-1.0], [0.2], [1.1]], [0.45, 0.4, 0.5], [0.3, 0.3, 0.4])
THETA = torch.tensor([0.2, 1.1], dtype=torch.float64)
"""(2,) shift and scale."""


def normal_nodes(count: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes (N,) and weights (N,) of the standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def interval_nodes(low: float, high: float, count: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes (N,) and weights (N,) of the integral over an interval."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (nodes + 1)), torch.from_numpy(half * weights)


def generator_at(theta: Tensor) -> Mixture:
    """What x has for a distribution; no gradient."""
    shift, scale = theta.detach()
    return Mixture(shift + scale * BASE.means, scale * BASE.stds, BASE.weights)


def samples(theta: Tensor, count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Generated x (N, 1), standard noise (N, 1) and weights (N,): all pairs of nodes; x carries the gradient."""
    nodes, weights = normal_nodes(count)
    base = (BASE.means + BASE.stds[:, None] * nodes).reshape(-1)
    mass = (BASE.weights[:, None] * weights).reshape(-1)
    x = theta[0] + theta[1] * base.repeat_interleave(count)
    noise = nodes.repeat(len(base))
    return x[:, None], noise[:, None], (mass[:, None] * weights).reshape(-1)


def points(mixture: Mixture, sigma: float, count: int = 120) -> tuple[Tensor, Tensor]:
    """Nodes (N, 1) and weights (N,) of the noised mixture's own distribution."""
    nodes, weights = normal_nodes(count)
    std = (mixture.stds**2 + sigma**2).sqrt()
    where = mixture.means + std[:, None] * nodes
    return where.reshape(-1, 1), (mixture.weights[:, None] * weights).reshape(-1)


def ratio(p: Mixture, x: Tensor, sigma: float) -> Tensor:
    """(N,) q / p of the teacher and a generator at noised points x (N, 1)."""
    return (TEACHER.log_density(x, 1.0, sigma) - p.log_density(x, 1.0, sigma)).exp()


def finite_differences(function, theta: Tensor, step: float = 1e-4) -> Tensor:
    """(2,) central differences of a function of theta, exact to fourth order."""
    found = []
    for unit in torch.eye(len(theta), dtype=theta.dtype):
        near = function(theta + step * unit) - function(theta - step * unit)
        far = function(theta + 2 * step * unit) - function(theta - 2 * step * unit)
        found.append((8 * near - far) / (12 * step))
    return torch.stack(found)
