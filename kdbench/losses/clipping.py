"""Divergence inside the dense region of the teacher's distribution (Liu et al. 2026, section on the DAC-KL loss).

The tokens of one position are sorted by the teacher's probability, the largest first. The place of a token is the
teacher's mass before it and half of its own, in (0, 1). A region is given by two quantiles l < u, here by their
log-odds, so that l = 0 and u = 1 are minus and plus infinity; a token is inside where l < place < u. The border is
soft, ``sigmoid((logit place - logit l) / softness) * sigmoid((logit u - logit place) / softness)``, so that gradients
reach the quantiles; at l = 0, u = 1 every token is inside exactly.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdbench.losses.divergences import kl, log_softmax, same_vocabulary

Clip = Literal["cut", "border"]

FARTHEST = 60.0
"""Log-odds at which the border of a region is looked up where the quantile is 0 or 1."""
LEAST = -100.0
"""Logit of a token with probability 0 where others are moved relative to it."""


class Region(NamedTuple):
    """Sorted positions and how far each token is inside the region."""

    order: Tensor
    """(..., V) int64: tokens by the teacher's probability, the largest first."""
    log_p: Tensor
    """(..., V) the teacher's log-probabilities in this order."""
    place: Tensor
    """(..., V) log-odds of the place of each token in the teacher's mass."""
    low: Tensor
    """(..., V) log of how far each token is above the lower quantile; 0: wholly."""
    high: Tensor
    """(..., V) log of how far each token is below the upper quantile."""

    @property
    def inside(self) -> Tensor:
        """(..., V) in [0, 1]."""
        return (self.low + self.high).exp()

    @property
    def mass(self) -> Tensor:
        """(...): the teacher's probability inside the region."""
        return (self.log_p.exp() * self.inside).sum(-1)

    @property
    def tokens(self) -> Tensor:
        """(...): tokens inside the region, counted by how far they are inside."""
        return self.inside.sum(-1)


def dense_region(teacher: Tensor, low: Tensor, high: Tensor, *, softness: float = 0.5, keep_top: bool = True) -> Region:
    """The region between two quantiles of the teacher's mass at each position.

    ``teacher`` (..., V) logits without gradient, ``low`` and ``high`` (...) or scalar log-odds of the quantiles,
    ``softness`` of the border in log-odds. With ``keep_top`` the most probable token is inside wherever the quantiles
    are.
    """
    log_p, order = log_softmax(teacher.detach()).sort(dim=-1, descending=True, stable=True)
    p = log_p.exp()
    # both tails are summed from their own end, since the difference to 1 would lose the small one
    below, above = p.cumsum(-1) - p / 2, p.flip(-1).cumsum(-1).flip(-1) - p / 2
    tiny = torch.finfo(p.dtype).tiny
    place = below.clamp_min(tiny).log() - above.clamp_min(tiny).log()
    over, under = (place - low.unsqueeze(-1)) / softness, (high.unsqueeze(-1) - place) / softness
    gates = [logsigmoid(over), logsigmoid(under)]
    if keep_top:
        top = torch.zeros_like(place, dtype=torch.bool)
        top[..., 0] = True
        gates = [gate.masked_fill(top, 0.0) for gate in gates]
    return Region(order, log_p, place, *gates)


def clipped_kl(
    student: Tensor,
    teacher: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    softness: float = 0.5,
    keep_top: bool = True,
    clip: Clip = "cut",
) -> tuple[Tensor, Region]:
    """Forward KL of the two distributions clipped to the teacher's dense region, and the region: (..., V) to (...).

    Both sides are clipped at the same tokens and normalised again. ``cut``: tokens outside are taken away.
    ``border``: their logits are set to that of the token at the border they are beyond. The teacher is detached;
    gradients reach the student and the quantiles ``low`` and ``high`` ((...) or scalar log-odds, low < high). At minus
    and plus infinity this is the forward KL.
    """
    student, teacher = same_vocabulary(student, teacher)
    region = dense_region(teacher, low, high, softness=softness, keep_top=keep_top)
    log_q = log_softmax(student).gather(-1, region.order)
    if clip == "cut":
        gate = region.low + region.high
        return kl(log_softmax(region.log_p + gate), log_softmax(log_q + gate)), region
    sides = []
    for logits in (region.log_p, log_q):
        finite = logits.clamp_min(LEAST)
        upper, lower = (_at_border(finite, region.place, quantile, softness) for quantile in (low, high))
        beyond = -torch.expm1(region.low) * (upper - finite) - torch.expm1(region.high) * (lower - finite)
        sides.append(log_softmax(finite + beyond))
    return kl(*sides), region


def _at_border(logits: Tensor, place: Tensor, quantile: Tensor, softness: float) -> Tensor:
    """(..., 1): logits of the tokens nearest to a quantile, the nearer the more."""
    distance = (place - quantile.unsqueeze(-1).clamp(-FARTHEST, FARTHEST)).abs()
    return ((-distance / softness).softmax(-1) * logits).sum(-1, keepdim=True)
