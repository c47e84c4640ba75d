"""Optimal transport with entropic regularisation: plans and costs by Sinkhorn's iterations in the log domain.

In the log domain no kernel underflows, however small ``eps`` is against the costs. Gradients flow through the costs,
through the marginals and through all iterations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.losses.binarised import log1mexp
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import widen


def l1_cost(a: Tensor, b: Tensor) -> Tensor:
    """L1 distances of all pairs of rows; (..., N, D), (..., M, D) to (..., N, M), in [0, 2] for distributions.

    Where two entries are equal the gradient is 0, one of the subgradients.
    """
    return torch.cdist(widen(a), widen(b), p=1.0)


def event_l1_cost(logits: Tensor, ids: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """L1 distances in the events of the teacher's rows: the k tokens ``ids`` (M, k) of each, and all others together.

    Student logits (N, V) and log-probabilities ``teacher`` (M, k + 1) of the events, already softened by
    ``temperature``, to (N, M): the student's row is mapped into the events of each row of the teacher.
    """
    known = log_softmax(logits)[:, ids]
    rest = log1mexp(known.logsumexp(-1, keepdim=True))
    mine = log_softmax(torch.cat([known, rest], -1), temperature)
    return (mine.exp() - teacher.exp()).abs().sum(-1)


def sinkhorn(
    cost: Tensor,
    eps: float = 0.1,
    iterations: int = 20,
    *,
    log_rows: Tensor | None = None,
    log_columns: Tensor | None = None,
) -> Tensor:
    """The plan ``diag(u) exp(-cost / eps) diag(v)`` with given marginals (Cuturi 2013, section 4.1).

    ``cost`` (..., N, M) to (..., N, M). Each of the ``iterations`` scales the rows and then the columns, so that the
    columns' sums are exact and the rows' in the limit. ``log_rows`` (..., N) and ``log_columns`` (..., M) are the
    logarithms of the sums, 1 for every row and column by default; ``-inf`` is an empty row or column. Both have to
    have the same total, or the rows do not converge. Raises ``ValueError`` unless ``eps`` > 0 and ``iterations`` >= 1.
    """
    _check(eps, iterations)
    kernel = -widen(cost) / eps
    rows = kernel.new_zeros(kernel.shape[:-1]) if log_rows is None else log_rows
    columns = kernel.new_zeros(kernel.shape[:-2] + kernel.shape[-1:]) if log_columns is None else log_columns
    v = torch.zeros_like(columns)
    for _ in range(iterations):
        u = rows - (kernel + v.unsqueeze(-2)).logsumexp(-1)
        v = columns - (kernel + u.unsqueeze(-1)).logsumexp(-2)
    return (kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp()


def transport_cost(cost: Tensor, eps: float = 0.1, iterations: int = 20) -> Tensor:
    """``sum(plan * cost)`` of the plan of :func:`sinkhorn` with sums of 1; (..., N, N) to (...), in [0, N max cost].

    The total mass is N. A set's cost to itself is not 0 but at most about ``N eps log N``, and tends to 0 with ``eps``.
    """
    cost = widen(cost)
    return (sinkhorn(cost, eps, iterations) * cost).sum((-2, -1))


def block_transport_cost(cost: Tensor, size: int, eps: float = 0.1, iterations: int = 20) -> Tensor:
    """Sum over sets of ``size`` successive rows of the transport within each; (N, N) to a scalar, the mass is N.

    The last set may be smaller; 0 is one set of all rows, 1 pairs each row with its own column.
    """
    size = min(size or len(cost), len(cost))
    blocks = [cost[start : start + size, start : start + size] for start in range(0, len(cost), size)]
    full = torch.stack([block for block in blocks if len(block) == size])
    value = transport_cost(full, eps, iterations).sum()
    if len(blocks) > len(full):
        value = value + transport_cost(blocks[-1], eps, iterations)
    return value


def discrete_transport_cost(
    log_a: Tensor, log_b: Tensor, eps: float = 0.1, iterations: int = 20, *, unit: float = 1.0
) -> Tensor:
    """Transport between two distributions where moving from any event to any other costs ``unit``.

    Log-probabilities (..., V), (..., V) to (...), in [0, unit]. The result of :func:`sinkhorn` with the (V, V) cost
    ``unit (1 - I)`` in O(V) per iteration, since its kernel is a constant plus a diagonal. For ``eps`` to 0
    and iterations that converge it is ``unit`` times the total variation distance. Raises as :func:`sinkhorn`.
    """
    _check(eps, iterations)
    log_a, log_b = widen(log_a), widen(log_b)
    apart = -unit / eps
    own = math.log(-math.expm1(apart))  # of 1 - exp(-unit / eps), what the diagonal has beyond the constant

    def product(v: Tensor) -> Tensor:
        return torch.logaddexp(v.logsumexp(-1, keepdim=True) + apart, v + own)

    v = torch.zeros_like(log_b)
    for _ in range(iterations):
        u = log_a - product(v)
        v = log_b - product(u)
    stays = (u + v).exp().sum(-1)
    return unit * (log_b.exp().sum(-1) - stays)


def _check(eps: float, iterations: int) -> None:
    if not eps > 0:
        raise ValueError(f"eps is positive, not {eps}")
    if iterations < 1:
        raise ValueError(f"there is at least 1 iteration, not {iterations}")
