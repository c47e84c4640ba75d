"""Which samples of a foreign set look like one's own: density-ratio filters of federated distillation.

A filter is fitted on private samples alone (and, for KuLSIF, on the foreign set's inputs), takes its threshold from the
private samples, and keeps those of the foreign samples that are within it. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from kdbench.training.kernels import median_gamma, rbf

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """What a filter says of a foreign set, and what that took."""

    mask: Mask
    """(m,) samples that are kept."""
    multiply_adds: float
    """Of fitting and filtering: the products of distances, kernels and the linear system, to leading order."""
    memory_bytes: float
    """Of the largest arrays that the filter holds at once."""


def kmeans_filter(private: Array, foreign: Array, *, clusters: int, percentile: float, seed: int) -> Kept:
    """Keep samples that are as near to a centroid of the private samples as these are themselves.

    Mujtaba et al. 2025: k-means with ``clusters`` centroids (at most one per private sample), and the threshold is
    the ``percentile`` (0 to 100) of the private samples' distances to their nearest centroid. ``private`` (n, d),
    ``foreign`` (m, d); ``seed`` in [0, 2^32).
    """
    clusters = min(clusters, len(np.unique(private, axis=0)))
    fitted = KMeans(clusters, n_init=1, random_state=seed).fit(private)
    centroids = fitted.cluster_centers_
    threshold = np.percentile(cdist(private, centroids).min(1), percentile)
    mask = cdist(foreign, centroids).min(1) <= threshold
    n, d = private.shape
    passes = (fitted.n_iter_ + 1) * n + len(foreign)
    return Kept(mask, float(passes * clusters * d), 8.0 * clusters * (d + max(n, len(foreign))))


@dataclass(frozen=True)
class Kulsif:
    """A fitted density ratio r = p / q; Kanamori, Suzuki and Sugiyama, Machine Learning 86, 2012, section 3.

    r(x) = sum_j beta_j k(x, u_j) + 1 / (lam n) sum_i k(x, x_i) minimises the mean of r^2 / 2 over the n' = m samples u
    of q, minus the mean of r over the n samples x of p, plus lam / 2 times the squared norm of r:
    beta = -1 / (lam n m) (K_uu / m + lam I)^-1 K_ux 1.
    """

    numerator: Array
    denominator: Array
    beta: Array
    gamma: float
    lam: float

    @classmethod
    def fit(cls, numerator: Array, denominator: Array, *, lam: float, gamma: float | None = None) -> Kulsif:
        """``numerator`` (n, d) of p, ``denominator`` (m, d) of q; ``gamma`` of the kernel exp(-gamma |a - b|^2).

        The default is 1 over the median squared distance of all samples. Raises ``ValueError`` unless lam > 0.
        """
        if lam <= 0:
            raise ValueError(f"the ridge must be positive, not {lam}")
        gamma = median_gamma(np.concatenate([numerator, denominator])) if gamma is None else gamma
        n, m = len(numerator), len(denominator)
        system = rbf(denominator, denominator, gamma) / m + lam * np.eye(m)
        beta = -cho_solve(cho_factor(system), rbf(denominator, numerator, gamma).sum(1)) / (lam * n * m)
        return cls(numerator, denominator, np.asarray(beta), gamma, lam)

    def __call__(self, x: Array) -> Array:
        """(B,) density ratios at x (B, d); the estimate is not clipped at 0."""
        own = rbf(x, self.numerator, self.gamma).sum(1) / (self.lam * len(self.numerator))
        return np.asarray(rbf(x, self.denominator, self.gamma) @ self.beta + own)


def kulsif_filter(private: Array, foreign: Array, *, lam: float, percentile: float) -> Kept:
    """Keep samples whose density ratio, private over foreign, is not below that of nearly all private samples.

    The threshold leaves out as many private samples as that of :func:`kmeans_filter`: 100 - ``percentile`` percent.
    """
    ratio = Kulsif.fit(private, foreign, lam=lam)
    mask = ratio(foreign) >= np.percentile(ratio(private), 100 - percentile)
    (n, d), m = private.shape, len(foreign)
    # The system, the right side and both evaluations are kernels of d products per entry; then the factorisation.
    entries = m * m + m * n + m * (m + n) + n * (m + n)
    return Kept(mask, float(entries * d + m**3 / 3), 8.0 * (m * m + m * n))
