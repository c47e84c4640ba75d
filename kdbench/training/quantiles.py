"""A network that reads two distributions at a position and says which part of the teacher's mass to look at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.losses.divergences import log_softmax


def top_probabilities(logits: Tensor, count: int) -> Tensor:
    """The ``count`` largest probabilities of each row in descending order, zeros where there are fewer; no gradient.

    (N, V) to (N, count), float32 or wider.
    """
    found = log_softmax(logits.detach()).exp().topk(min(count, logits.shape[-1]), dim=-1).values
    return F.pad(found, (0, count - found.shape[-1]))


class Quantiles(nn.Module):
    """Two quantiles l < u in (0, 1) for each position, from the largest probabilities of teacher and student.

    Starts at ``low`` and ``high`` whatever it reads, and always has at least the share ``least`` of the mass between
    the two: l and 1 - u are below (1 - least) / 2. Without such a bound, a network that minimises a divergence between
    its quantiles leaves a single token there. Liu et al. 2026 give the inputs and outputs; the shape, one hidden layer
    of ``hidden`` units, and the bound are ours.
    """

    def __init__(self, top_k: int, hidden: int, low: float, high: float, least: float = 0.0) -> None:
        """Raises ``ValueError`` unless the start lies within the bounds."""
        super().__init__()
        self.top_k, self.most = top_k, (1 - least) / 2
        if not (0 < low < self.most and 0 < 1 - high < self.most):
            raise ValueError(
                f"quantiles that are learned start with 0 < low and 1 - high < {self.most:g}, "
                f"not at {low:g} and {high:g}"
            )
        last = nn.Linear(hidden, 2)
        self.body = nn.Sequential(nn.Linear(2 * top_k, hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.logit(torch.tensor([low, 1 - high], dtype=torch.float64) / self.most))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of l and of u, (N,) each, from logits (N, V); gradients reach this network alone."""
        inputs = torch.cat([top_probabilities(logits, self.top_k) for logits in (teacher, student)], dim=-1)
        tails = self.body(inputs)
        share = math.log(self.most) + F.logsigmoid(tails)
        odds = share - torch.log1p(-share.exp())
        return odds[:, 0], -odds[:, 1]


class FixedQuantiles(nn.Module):
    """The same two quantiles at every position, 0 and 1 included."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("ends", torch.logit(torch.tensor([low, high])))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of l and of u, (N,) each, from logits (N, V)."""
        low, high = self.get_buffer("ends").expand(len(student), 2).unbind(-1)
        return low, high


def quantiles(low: float, high: float, *, learned: bool, top_k: int, hidden: int, least: float) -> nn.Module:
    """:class:`Quantiles` that start at ``low`` and ``high``, or fixed ones. ``UsageError`` where they cannot be so."""
    if not low < high:
        raise UsageError(f"low is below high, but they are {low:g} and {high:g}")
    if not learned:
        return FixedQuantiles(low, high)
    try:
        return Quantiles(top_k, hidden, low, high, least)
    except ValueError as error:
        raise UsageError(str(error)) from error
