"""Subclasses of the classes of a data set, found in the embeddings of a trained classifier.

For an embedding h and a class c every kind gives scores s_c(h) in R^S, whose softmax is the distribution over the
subclasses of c. The part of h that the classifier sees, the row space of its weights W (C, D), is removed first: what
is left says nothing about the class. N is the number of training embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import ortho_group
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from kdbench.errors import UsageError

Array = npt.NDArray[np.float64]
Axes = Callable[[Array, int], Array]
"""Axes of a class, ``axes(rows, k)``: centred rows (N_c, D) in the null space to at most k orthonormal rows (k, D)."""

NOTHING = 1e-9
"""Share of the mean variance of a class below which a direction is taken to have none."""


def as_tensor(values: Array, device: torch.device) -> Tensor:
    """In the order of memory that files want."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def null_space(weight: Array) -> Array:
    """Orthonormal basis (D, D - rank W) of the directions that ``weight`` (C, D) maps to 0."""
    _, values, rows = np.linalg.svd(weight, full_matrices=True)
    rank = int((values > values.max(initial=0.0) * max(weight.shape) * np.finfo(np.float32).eps).sum())
    basis: Array = rows[rank:].T
    return basis


@dataclass
class Directions:
    """Signed coordinates along k directions of each class: S = 2k scores u_1 .. u_k, -u_1 .. -u_k."""

    mean: Tensor
    """(C, D) float64 mean embedding of each class."""
    basis: Tensor
    """(C, D, k) float64: directions, divided by the standard deviation of the class along them; 0 where it has none."""
    explained: Tensor
    """(C,) float64 share in [0, 1] of the variance of the class in the null space that lies in its directions."""

    def coordinates(self, embeddings: Tensor) -> Tensor:
        """(B, D) to u (B, C, k) float64, of unit variance over the training rows of each class."""
        u = torch.einsum("bd,cdk->bck", embeddings.double(), self.basis)
        return u - torch.einsum("cd,cdk->ck", self.mean, self.basis)

    def scores(self, embeddings: Tensor) -> Tensor:
        """(B, D) to (B, C, 2k) float64."""
        u = self.coordinates(embeddings)
        return torch.cat([u, -u], dim=-1)

    def seen_by(self, weight: Tensor) -> float:
        """Largest change that a step along a direction makes in the logits of ``weight`` (C, D), over its longest row.

        0 where every direction lies in the null space of ``weight``, at most 1.
        """
        weight = weight.detach().double()
        directions = torch.nn.functional.normalize(self.basis, dim=1)
        seen = torch.einsum("ed,cdk->eck", weight, directions).abs().max()
        return float(seen / weight.norm(dim=1).max())

    def tensors(self) -> dict[str, Tensor]:
        """For a file; the constructor takes them back."""
        return {"mean": self.mean, "basis": self.basis, "explained": self.explained}


@dataclass
class Clusters:
    """S clusters of each class: the score is the negative squared distance, in units of that within the clusters."""

    project: Tensor
    """(D, D - r) float64 basis of the null space."""
    centres: Tensor
    """(C, S, D - r) float64; not a number for clusters that a class of fewer rows does not have."""
    spread: Tensor
    """(C,) float64 mean squared distance of a row to its centre."""

    def scores(self, embeddings: Tensor) -> Tensor:
        """(B, D) to (B, C, S) float64; minus infinity for clusters that are not there."""
        z = embeddings.double() @ self.project
        distance = torch.stack([(z[:, None] - centres).square().sum(-1) for centres in self.centres], dim=1)
        return (-distance / self.spread[:, None]).nan_to_num(nan=-torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; the constructor takes them back."""
        return {"project": self.project, "centres": self.centres, "spread": self.spread}


def principal_axes(rows: Array, k: int) -> Array:
    """The directions of largest variance, by descending variance."""
    count = min(k, *rows.shape)
    axes: Array = PCA(count, svd_solver="full").fit(rows).components_ if count else rows[:0]
    return axes


def random_axes(basis: Array, rng: np.random.Generator) -> Axes:
    """Axes that do not look at the rows: random orthonormal directions of the null space ``basis`` (D, D - r)."""

    def axes(rows: Array, k: int) -> Array:
        drawn, _ = np.linalg.qr(rng.standard_normal((basis.shape[1], k)))
        directions: Array = (basis @ drawn).T
        return directions

    return axes


def fit_directions(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    k: int,
    *,
    axes: Axes = principal_axes,
    rotate: np.random.Generator | None = None,
) -> Directions:
    """Directions of each class from training embeddings (N, D) and labels (N,); ``weight`` (C, D) of the classifier.

    Per class: subtract the mean, project to the null space of ``weight``, take ``axes``, rotate them among themselves
    by a random orthogonal matrix (``rotate``), scale to unit variance. A class of n rows has at most n - 1 directions;
    the coordinates along missing ones are 0. Raises ``UsageError`` where the null space has fewer than k dimensions.
    """
    h, y, w = embeddings.double().cpu().numpy(), labels.cpu().numpy(), weight.double().cpu().numpy()
    free = null_space(w)
    if k > free.shape[1]:
        raise UsageError(
            f"{k} directions were asked for, but embeddings of width {w.shape[1]} have only {free.shape[1]} that the "
            f"{len(w)} rows of the classifier do not see"
        )
    mean, basis, explained = np.zeros(w.shape), np.zeros((*w.shape, k)), np.zeros(len(w))
    for c in range(len(w)):
        rows = h[y == c]
        if len(rows) < 2:
            mean[c] = rows.sum(0)
            continue
        mean[c] = rows.mean(0)
        rows = (rows - mean[c]) @ free @ free.T
        total = rows.var(0).sum()
        found = axes(rows, k)
        found = found[(rows @ found.T).var(0) > NOTHING * total]  # n rows span n - 1 directions
        explained[c] = (rows @ found.T).var(0).sum() / total if total > 0 else 0.0
        if rotate is not None and len(found) > 1:
            found = ortho_group.rvs(len(found), random_state=rotate) @ found
        basis[c, :, : len(found)] = (found / (rows @ found.T).std(0)[:, None]).T
    return Directions(*(as_tensor(part, embeddings.device) for part in (mean, basis, explained)))


def fit_clusters(embeddings: Tensor, labels: Tensor, weight: Tensor, subclasses: int, seed: int) -> Clusters:
    """k-means of each class in the null space of ``weight`` (C, D); arguments as for :func:`fit_directions`.

    A class with fewer rows than ``subclasses`` has a cluster per row, one without rows a single cluster at 0.
    """
    h, y, w = embeddings.double().cpu().numpy(), labels.cpu().numpy(), weight.double().cpu().numpy()
    free = null_space(w)
    centres, spread = np.full((len(w), subclasses, free.shape[1]), np.nan), np.ones(len(w))
    for c in range(len(w)):
        rows = h[y == c] @ free
        if not len(rows):
            centres[c, 0] = 0.0
            continue
        fitted = KMeans(min(subclasses, len(np.unique(rows, axis=0))), n_init=4, random_state=seed).fit(rows)
        centres[c, : len(fitted.cluster_centers_)] = fitted.cluster_centers_
        within, total = fitted.inertia_ / len(rows), rows.var(0).sum()
        if total > 0:  # where every row is its own centre, the unit is the variance of the class
            spread[c] = within if within > NOTHING * total else total
    return Clusters(*(as_tensor(part, embeddings.device) for part in (free, centres, spread)))


def mean_nmi(assignment: npt.NDArray[Any], topics: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Normalised mutual information in [0, 1] of two labellings (N,), mean over the classes ``labels`` (N,)."""
    classes = np.unique(labels)
    return float(np.mean([normalized_mutual_info_score(topics[labels == c], assignment[labels == c]) for c in classes]))
