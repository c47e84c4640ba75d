"""What divergences and their slopes are where two distributions hardly overlap, and where they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.losses.divergences import kl, log_mixture, log_softmax

PARTS = 5

Transport = Callable[[Tensor, Tensor], Tensor]
"""A transport cost of probabilities q (N, V) and p (N, V), summed over the rows, a scalar."""


def measures(log_q: Tensor, log_p: Tensor, transport: Transport) -> dict[str, dict[str, float]]:
    """Mean ``value`` per row, and ``slope``: mean over rows of the largest derivative in q, of several divergences.

    ``fkl``, ``rkl``, ``jsd`` and ``sinkhorn``, which is ``transport``, of (N, V) log-probabilities, in float64.
    """
    q, log_p = log_q.double().exp().requires_grad_(), log_p.double()

    def jsd() -> Tensor:
        middle = log_mixture(log_p, q.log(), 0.5)
        return ((kl(log_p, middle) + kl(q.log(), middle)) / 2).sum()

    values: dict[str, Callable[[], Tensor]] = {
        "fkl": lambda: kl(log_p, q.log()).sum(),
        "rkl": lambda: kl(q.log(), log_p).sum(),
        "jsd": jsd,
        "sinkhorn": lambda: transport(q, log_p.exp()),
    }
    table = {}
    with torch.enable_grad():
        for name, value in values.items():
            total = value()
            (slope,) = torch.autograd.grad(total, q)
            table[name] = {"value": float(total.detach()) / len(q), "slope": float(slope.abs().amax(-1).mean())}
    return table


def by_overlap(student: Tensor, teacher: Tensor, transport: Transport) -> list[dict[str, Any]]:
    """:func:`measures` of fifths of the rows of logits (N, V) by ``sum min(p, q)``, the least overlapping first.

    Each part also has its ``rows``, their number, and ``overlap``, their mean in [0, 1].
    """
    log_q, log_p = log_softmax(student.detach()), log_softmax(teacher)
    overlap = torch.minimum(log_q, log_p).exp().sum(-1)
    parts = [part for part in overlap.argsort().tensor_split(PARTS) if len(part)]
    return [
        {"overlap": float(overlap[part].mean()), "rows": len(part), **measures(log_q[part], log_p[part], transport)}
        for part in parts
    ]
