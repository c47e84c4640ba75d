"""Estimates of KL(q || p) from tokens that the student q has sampled, one value a token.

With ``d = log q(y) - log p(y)`` for y drawn from q (Schulman 2020):

=====  ==================  ================================  ===========================================
kind   value               expectation                       gradient of the expectation as a *loss*
=====  ==================  ================================  ===========================================
k1     d                   KL(q || p)                        0
k2     d^2 / 2             only close to it                  grad KL(q || p)
k3     exp(-d) - 1 + d     KL(q || p)                        grad KL(p || q): the *forward* divergence
=====  ==================  ================================  ===========================================

The gradients are those at a fixed context, the sample being held constant, as automatic differentiation does. As a
*reward* (:func:`as_reward`: the advantage -d, without gradient, times log q) the gradient is that of KL(q || p).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LARGEST = 20.0
"""Bound of |d| within the exponential of k3."""


def estimate(kind: Estimator, logp: Tensor, other: Tensor) -> Tensor:
    """Values (N,) of an estimator; ``logp`` (N,) of the student with gradient, ``other`` (N,) without.

    Raises ``ValueError`` for an unknown kind.
    """
    d = logp - other.detach()
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    if kind == "k3":
        bounded = d.clamp(-LARGEST, LARGEST)
        return (-bounded).exp() - 1 + bounded
    raise ValueError(f"an estimator is 'k1', 'k2' or 'k3', not {kind!r}")


def as_reward(logp: Tensor, other: Tensor) -> Tensor:
    """Losses (N,) ``(log q - log p) log q`` with the bracket held constant: on average the gradient of KL(q || p)."""
    return (logp - other).detach() * logp
