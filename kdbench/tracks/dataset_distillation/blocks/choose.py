"""Which real images stand for a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Choice = Callable[[Tensor, int], Tensor]
"""(features (N, D), count) to positions (count,)."""


def by_class(y: Tensor, count: int, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Rows (count * K,) of labels (N,), class after class in turns: first one of each class, then the second of each.

    ``choose(rows, count)`` takes ``count`` of the rows of one class.
    """
    chosen = [choose((y == label).nonzero().flatten(), count) for label in range(int(y.max()) + 1)]
    return torch.stack(chosen, 1).flatten()


def random_rows(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random rows of each class."""
    return by_class(y, count, lambda rows, n: rows[torch.randperm(len(rows), generator=generator)[:n].to(rows.device)])


def herding(features: Tensor, count: int) -> Tensor:
    """Positions (count,) whose mean follows the mean of all features (N, D) (Welling, ICML 2009; iCaRL, CVPR 2017).

    The k-th one brings the mean of the first k nearest to it.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, count + 1):
        distance = ((total + features) / k - mean).norm(dim=1).masked_fill(taken, torch.inf)
        best = int(distance.argmin())
        taken[best] = True
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen, device=features.device)


def nearest_to_centroids(features: Tensor, count: int, seed: int) -> Tensor:
    """Positions (count,) nearest to the centroids of ``count`` k-means clusters of features (N, D); no row twice.

    The largest clusters come first.
    """
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=3, random_state=seed % 2**31).fit(features.double().cpu().numpy())
    sizes = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=count)
    centroids = torch.from_numpy(found.cluster_centers_).to(features.device, features.dtype)
    distance = torch.cdist(centroids[sizes.argsort(descending=True, stable=True).to(features.device)], features)
    chosen: list[int] = []
    for row in distance:
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return torch.tensor(chosen, device=features.device)
