"""Self-distillation of ridge regression on a part of the data, in closed form and in float64.

y = X w + noise, X (n, d). A teacher is fitted to some rows, a student to others, with targets (1 - alpha) y + alpha
(the teacher's predictions). Both are linear in y, so that the student is M(alpha) y with

    M(alpha) = (1 - alpha) A_s + alpha A_s X A_t,      A: (d, n), (X' X + lam I)^-1 X' on the rows used, 0 elsewhere

and its expected squared error over the noise is |(M X - I) w|^2 + sigma^2 |M|_F^2, a quadratic in alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Array = npt.NDArray[np.float64]


def ridge_operator(x: Array, rows: npt.NDArray[np.int64], lam: float) -> Array:
    """A (d, n): the weights fitted to some rows of x (n, d) are A y. Raises ``ValueError`` unless lam > 0."""
    if lam <= 0:
        raise ValueError(f"the ridge must be positive, not {lam}")
    part, operator = x[rows], np.zeros(x.T.shape)
    operator[:, rows] = cho_solve(cho_factor(part.T @ part + lam * np.eye(x.shape[1])), part.T)
    return operator


@dataclass
class PrunedRidge:
    """A student on some rows that learns from labels and from a teacher on other rows."""

    x: Array
    """(n, d)."""
    labels_only: Array
    """M(0) (d, n)."""
    teacher_only: Array
    """M(1) (d, n)."""

    @classmethod
    def of(cls, x: Array, student: npt.NDArray[np.int64], teacher: npt.NDArray[np.int64], lam: float) -> PrunedRidge:
        """From the rows of x that each of the two is fitted to, with the same ridge ``lam``."""
        own = ridge_operator(x, student, lam)
        # x @ A_t has the teacher's predictions on all rows; the student's operator reads its own ones alone
        return cls(x, own, own @ x @ ridge_operator(x, teacher, lam))

    def operator(self, alpha: float) -> Array:
        """M(alpha) (d, n)."""
        return (1 - alpha) * self.labels_only + alpha * self.teacher_only

    def bias(self, alpha: float, w: Array) -> Array:
        """Expected weights minus the true ones ``w`` (d,)."""
        return np.asarray(self.operator(alpha) @ (self.x @ w) - w)

    def error(self, alpha: float, w: Array, sigma: float) -> float:
        """Expected squared distance of the weights to the true ones."""
        return float(np.square(self.bias(alpha, w)).sum() + sigma**2 * np.square(self.operator(alpha)).sum())

    def best_alpha(self, w: Array, sigma: float) -> float:
        """The weight of the teacher in [0, 1] with the smallest expected error."""
        move = self.teacher_only - self.labels_only
        moved = move @ (self.x @ w)
        slope = float(self.bias(0, w) @ moved + sigma**2 * np.sum(self.labels_only * move))
        curvature = float(moved @ moved + sigma**2 * np.square(move).sum())
        return float(np.clip(-slope / curvature, 0, 1)) if curvature > 0 else 0.0
