"""Measures from distances between features: precision and recall of a generator, and its diversity."""

from __future__ import annotations

import torch
from torch import Tensor


def radii(features: Tensor, k: int = 3) -> Tensor:
    """(N,) distance of each of the features (N, D) to its ``k``-th neighbour among the others.

    Raises ``ValueError`` where there are not so many.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"{len(features)} samples have at most {len(features) - 1} neighbours each, not {k}")
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    return distances.kthvalue(k, dim=1).values


def covered(points: Tensor, features: Tensor, k: int = 3) -> float:
    """Share of ``points`` (M, D) within the ball of any of ``features`` (N, D) that reaches its ``k``-th neighbour."""
    points, features = points.double(), features.double()
    return float((torch.cdist(points, features) <= radii(features, k)).any(1).double().mean())


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of samples near real ones, and of real ones near samples, in [0, 1].

    Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991): balls around (N, D) and (M, D) features
    reach to their ``k``-th neighbour. Both depend on the numbers of samples.
    """
    return covered(fake, real, k), covered(real, fake, k)


def spread(features: Tensor) -> float:
    """Mean Euclidean distance of two different rows of (N, D); NaN for fewer than two."""
    if len(features) < 2:
        return float("nan")
    return float(torch.pdist(features.double()).mean())


def diversity(features: Tensor, groups: Tensor) -> float:
    """Mean over the groups (N,) int64 of their :func:`spread`: how different samples of one prompt are.

    Groups of a single sample are left out; NaN where all are.
    """
    spreads = [spread(features[groups == group]) for group in groups.unique()]
    return float(torch.tensor(spreads, dtype=torch.float64).nanmean())
