"""Fréchet distance of two Gaussians that are fitted to features (Heusel et al. 2017, arXiv:1706.08500).

Computed in float64. The trace term is that of the symmetric root C1^(1/2) C2 C1^(1/2), whose eigenvalues are clipped at
0: covariances of few samples or of dead features are singular, where a general matrix root fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, D), at least two; the covariance is the unbiased one."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"moments are taken of two or more rows of features, not of {tuple(features.shape)}")
        rows = features.detach().cpu().double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1), len(rows))


def root(matrix: Tensor) -> Tensor:
    """Symmetric root (D, D) of a symmetric positive semidefinite matrix; negative eigenvalues count as 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2)); 0 or more, 0 for equal moments."""
    half = root(first.covariance)
    inner = half @ second.covariance @ half
    overlap = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * overlap
    return max(float((first.mean - second.mean).square().sum() + spread), 0.0)


def frechet(first: Tensor, second: Tensor) -> float:
    """The distance of features (N, D) and (M, D). It grows with fewer samples: compare equal numbers alone."""
    return distance(Moments.of(first), Moments.of(second))
