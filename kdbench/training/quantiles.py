"""A network that reads two distributions at a position and says which part of the teacher's mass to look at."""

from __future__ import annotations

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

    Starts at ``low`` and ``high`` whatever it reads. Liu et al. 2026 give the inputs and outputs; the shape, one hidden
    layer of ``hidden`` units, is ours.
    """

    def __init__(self, top_k: int, hidden: int, low: float, high: float) -> None:
        """Raises ``ValueError`` unless 0 < low < high < 1."""
        super().__init__()
        if not 0 < low < high < 1:
            raise ValueError(f"quantiles that are learned start at 0 < low < high < 1, not at {low} and {high}")
        self.top_k = top_k
        last = nn.Linear(hidden, 2)
        self.body = nn.Sequential(nn.Linear(2 * top_k, hidden), nn.ReLU(), last)
        start, end = torch.logit(torch.tensor([low, high], dtype=torch.float64))
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.stack([start, torch.log(torch.expm1(end - start))]))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of l and of u, (N,) each, from logits (N, V); gradients reach this network alone."""
        inputs = torch.cat([top_probabilities(logits, self.top_k) for logits in (teacher, student)], dim=-1)
        start, width = self.body(inputs).unbind(-1)
        return start, start + F.softplus(width)


class FixedQuantiles(nn.Module):
    """The same two quantiles at every position, 0 and 1 included."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.register_buffer("ends", torch.logit(torch.tensor([low, high])))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of l and of u, (N,) each, from logits (N, V)."""
        low, high = self.get_buffer("ends").expand(len(student), 2).unbind(-1)
        return low, high


def quantiles(low: float, high: float, *, learned: bool, top_k: int, hidden: int) -> nn.Module:
    """:class:`Quantiles` that start at ``low`` and ``high``, or fixed ones. ``UsageError`` where they cannot be so."""
    if not low < high:
        raise UsageError(f"low is below high, but they are {low:g} and {high:g}")
    if not learned:
        return FixedQuantiles(low, high)
    if low == 0 or high == 1:
        raise UsageError("quantiles that are learned cannot start at 0 or 1; give low and high between them")
    return Quantiles(top_k, hidden, low, high)
