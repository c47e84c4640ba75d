"""Distillation as reinforcement learning with a dense reward, and the distribution that it leads to.

With the teacher q, a base b and a weight lam the objective at each context is

    E_pi[lam log(q / b)] - KL(pi || b),        best policy: pi* ~ b^(1 - lam) q^lam.

lam = 1 is reverse KL to the teacher, whatever the base; lam > 1 goes beyond the teacher, away from the base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.losses.divergences import log_softmax


def advantage(old: Tensor, teacher: Tensor, base: Tensor, lam: float) -> Tensor:
    """(N,) ``-[(log pi_old - log b) - lam (log q - log b)]`` of sampled tokens, without gradient.

    Written with one factor for each distribution, so that at lam = 1 the base has none, exactly.
    """
    return (lam * teacher + (1.0 - lam) * base - old).detach()


def truncated_weights(policy: Tensor, sampler: Tensor, most: float) -> Tensor:
    """(N,) importance weights ``min(pi_old / sampler, most)`` of tokens from log-probabilities, without gradient."""
    return (policy - sampler).detach().exp().clamp(max=most)


def tilted(base: Tensor, teacher: Tensor, lam: float) -> Tensor:
    """(N, V) log-probabilities of the best policy, ``b^(1 - lam) q^lam`` normalised, of logits (N, V)."""
    return log_softmax((1.0 - lam) * log_softmax(base) + lam * log_softmax(teacher))


def objective(policy: Tensor, base: Tensor, teacher: Tensor, lam: float) -> Tensor:
    """(N,) the objective of probabilities ``policy`` (N, V) with gradient, for logits of the other two."""
    log_b, log_q = log_softmax(base), log_softmax(teacher)
    return (policy * (lam * (log_q - log_b) - policy.log() + log_b)).sum(-1)


def ascend(base: Tensor, teacher: Tensor, lam: float, *, steps: int = 200, size: float = 0.3) -> Tensor:
    """(N, V) float64 log-probabilities after maximising the objective from a uniform policy.

    Multiplicative updates along its gradient, ``log pi += size * dJ/dpi`` and normalised; they know the objective and
    not its solution, and close in on the maximum by ``1 - size`` a step.
    """
    base, teacher = base.double(), teacher.double()
    log_p = log_softmax(torch.zeros_like(base))
    with torch.enable_grad():
        for _ in range(steps):
            policy = log_p.exp().requires_grad_()
            (slope,) = torch.autograd.grad(objective(policy, base, teacher, lam).sum(), policy)
            log_p = log_softmax(log_p + size * slope)
    return log_p


def optimum_error(base: Tensor, teacher: Tensor, lam: float) -> float:
    """Largest difference in probability between the policy that :func:`ascend` finds and :func:`tilted`."""
    found, closed = ascend(base, teacher, lam), tilted(base.double(), teacher.double(), lam)
    return float((found.exp() - closed.exp()).abs().max())
