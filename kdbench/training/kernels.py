"""Kernel ridge regression and its repeated self-distillation, in float64 and with closed forms.

Notation of Borup and Andersen (NeurIPS 2021): K (n, n) is the Gram matrix of the training inputs, y (n, k) the
targets, ``lam`` > 0 the ridge, A = K (K + lam I)^-1 the smoother. Step 1 fits the labels; step tau > 1 fits
alpha y + (1 - alpha) times the predictions of step tau - 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

Array = npt.NDArray[np.float64]


def rbf(a: Array, b: Array, gamma: float) -> Array:
    """exp(-gamma |a_i - b_j|^2); (n, d), (m, d) to (n, m)."""
    return np.asarray(np.exp(-gamma * cdist(a, b, "sqeuclidean")))


def median_gamma(inputs: Array) -> float:
    """1 / median squared distance between different inputs: the usual width of an RBF kernel; inputs (n, d)."""
    squared = cdist(inputs, inputs, "sqeuclidean")[np.triu_indices(len(inputs), 1)]
    return float(1 / np.median(squared))


def ridge_coefficients(gram: Array, targets: Array, lam: float) -> Array:
    """(K + lam I)^-1 targets; (n, n), (n, k) to (n, k). Raises ``ValueError`` unless lam > 0."""
    if lam <= 0:
        raise ValueError(f"the ridge must be positive, not {lam}")
    factor = cho_factor(gram + lam * np.eye(len(gram)))
    return np.asarray(cho_solve(factor, targets))


def self_distill(gram: Array, targets: Array, lam: float, alphas: list[float]) -> list[Array]:
    """Coefficients (n, k) of each step; ``alphas[i]`` is the weight of the labels in step i + 2.

    Predictions at inputs X' are k(X', X) times the coefficients. Has ``len(alphas) + 1`` entries, the first being
    ridge regression on the labels.
    """
    factor = cho_factor(gram + lam * np.eye(len(gram)))
    coefficients = [np.asarray(cho_solve(factor, targets))]
    for alpha in alphas:
        mixed = alpha * targets + (1 - alpha) * (gram @ coefficients[-1])
        coefficients.append(np.asarray(cho_solve(factor, mixed)))
    return coefficients


def limit_coefficients(gram: Array, targets: Array, lam: float, alpha: float) -> Array:
    """Coefficients (n, k) after infinitely many steps: those of ridge regression with lam / alpha; 0 for alpha = 0.

    The limiting predictions at the training inputs are K (K + lam / alpha I)^-1 y.
    """
    if alpha == 0:
        return np.zeros_like(targets)
    return ridge_coefficients(gram, targets, lam / alpha)


def shrinkage(eigenvalues: Array, lam: float, alphas: list[float]) -> Array:
    """Diagonal of B for each step: the factor on each eigenvector's share of the labels; (steps, n).

    b^(1) = d / (d + lam), b^(tau) = b^(1) (alpha + (1 - alpha) b^(tau - 1)).
    """
    first = eigenvalues / (eigenvalues + lam)
    rows = [first]
    for alpha in alphas:
        rows.append(first * (alpha + (1 - alpha) * rows[-1]))
    return np.stack(rows)


def effective_sparsity(factors: Array, threshold: float = 0.01) -> float:
    """Share of eigen-directions that a step has shrunk below ``threshold`` of the largest factor; (n,) to [0, 1]."""
    return float(np.mean(factors < threshold * factors.max()))


def optimal_alpha(target: Array, labels_only: Array, teacher_only: Array, *, clip: bool = True) -> float:
    """Weight alpha of the labels in one step that minimises the squared validation error.

    A step's predictions are linear in alpha: alpha g + (1 - alpha) h, with g the predictions of the fit to the labels
    alone and h of the fit to the teacher alone, at the validation inputs whose targets are v. Hence
    alpha* = <v - h, g - h> / |g - h|^2. All arrays have one shape; 1 where g = h. ``clip`` keeps it in [0, 1].
    """
    direction = labels_only - teacher_only
    length = float(np.square(direction).sum())
    if length == 0:
        return 1.0
    alpha = float(np.sum((target - teacher_only) * direction) / length)
    return float(np.clip(alpha, 0, 1)) if clip else alpha
