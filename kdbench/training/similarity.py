"""How near a source network is to a target task, from its outputs on a few labelled target images alone.

Features are (N, D) and source probabilities (N, Z) arrays, labels (N,) whole numbers from 0. More is nearer; every
measure is computed in float64. Linear CKA of features and one-hot labels belongs here, too; see
:func:`kdbench.tracks.vision.metrics.linear_cka`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def one_hot(labels: Labels, classes: int | None = None) -> Array:
    """(N, C) float64 indicators of labels (N,); C is one more than the largest label unless it is given."""
    count = int(labels.max()) + 1 if classes is None else classes
    return np.eye(count)[labels]


def row_distances(rows: Array) -> Array:
    """1 - Pearson correlation of all pairs of rows (N, D): the strict lower triangle, N (N - 1) / 2 values in [0, 2].

    A constant row correlates with no other: its distances are 1.
    """
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    directions = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    below: Array = (1 - directions @ directions.T)[np.tril_indices(len(rows), -1)]
    return below


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two samples (N,) in [-1, 1], ties with their mean rank; 0 where either is constant."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else 0.0


def parc(features: Array, labels: Labels) -> float:
    """Pairwise annotation representation comparison, in [-1, 1] (Bolya, Mittapalli and Hoffman, NeurIPS 2021).

    The rank correlation, over all pairs of images, of 1 - Pearson correlation of their features with 1 - Pearson
    correlation of their one-hot labels. Unchanged when the features of all images are scaled, or shifted by a constant
    that is the same for all dimensions.
    """
    return spearman(row_distances(features.astype(np.float64)), row_distances(one_hot(labels)))


def leep(probs: Array, labels: Labels) -> float:
    """Log expected empirical prediction, at most 0 nats (Nguyen et al., ICML 2020, equations 1 to 3).

    With the empirical joint distribution P(y, z) = mean_i [y_i = y] p_i(z) of target labels and source classes, the
    mean log-likelihood of the labels under sum_z P(y | z) p_i(z). ``probs`` (N, Z) sum to 1 in each row.
    """
    probs = probs.astype(np.float64)
    joint = one_hot(labels).T @ probs / len(labels)
    marginal = joint.sum(axis=0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    return float(np.log((probs @ conditional.T)[np.arange(len(labels)), labels]).mean())


def h_score(features: Array, labels: Labels) -> float:
    """tr(cov(f)^+ cov(E[f | y])), at least 0 (Bao et al., ICIP 2019, definition 2), with a pseudo-inverse.

    At most the smaller of the rank of the features and the number of classes less one. Unchanged by every invertible
    linear map of the features.
    """
    centred = features.astype(np.float64) - features.mean(axis=0)
    indicators = one_hot(labels)
    counts = indicators.sum(axis=0)
    present = counts > 0
    means = (indicators.T @ centred)[present] / counts[present, None]
    between = (means * counts[present, None]).T @ means
    return float(np.trace(np.linalg.pinv(centred.T @ centred, hermitian=True) @ between))
