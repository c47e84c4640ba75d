"""Losses and statistics on the order of classes.

The Plackett-Luce model gives the permutation pi of C items with scores s the probability
prod_k exp(s_pi_k) / sum_{l >= k} exp(s_pi_l): the best is drawn by a softmax over all items, the next by a softmax
over those that are left, and so on.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses.logits import widen

Weighting = Literal["teacher", "uniform", "decreasing", "top"]


def plackett_luce_terms(scores: Tensor, order: Tensor) -> Tensor:
    """- log probability of each choice of a ranking; (B, C), (B, C) int64 to (B, C).

    ``order[b, k]`` is the class at rank k. Term k is -s_pi_k + logsumexp_{l >= k} s_pi_l; the last term is 0. The
    suffix sums are one reversed ``logcumsumexp``, stable for any number of classes.
    """
    ranked = widen(scores).gather(-1, order)
    suffix: Tensor = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    return suffix - ranked


def label_first_order(teacher: Tensor, labels: Tensor) -> Tensor:
    """Classes by descending teacher logit, the true label moved to the front; (B, C), (B,) to (B, C) int64."""
    front = widen(teacher).scatter(-1, labels.unsqueeze(-1), torch.inf)
    return front.argsort(stable=True, dim=-1, descending=True)


def position_weights(
    teacher: Tensor, order: Tensor, weighting: Weighting = "teacher", temperature: float = 1.0
) -> Tensor:
    """Weight of each rank, (B, C), rows sum to 1 and carry no gradient.

    ``teacher``: softmax(teacher / temperature) read in the order of the ranking, so that a label that the teacher
    holds unlikely keeps its small weight at the first rank. ``uniform``: 1 / C (ListMLE, Xia et al., ICML 2008).
    ``decreasing``: proportional to 2^(C - k) - 1 at rank k = 1..C (p-ListMLE, Lan et al., UAI 2014). ``top``: 1 at the
    first rank, which is the cross-entropy.
    """
    with torch.no_grad():
        if weighting == "teacher":
            return F.softmax(widen(teacher) / temperature, -1).gather(-1, order)
        classes = order.shape[-1]
        rank = torch.arange(1, classes + 1, device=order.device, dtype=torch.float32)
        if weighting == "uniform":
            weights = torch.ones_like(rank)
        elif weighting == "decreasing":
            weights = torch.exp2(-rank) - 2.0**-classes  # divided by 2^C, which would overflow
        else:
            weights = (rank == 1).float()
        return (weights / weights.sum()).expand(order.shape)


def weighted_list_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, *, weighting: Weighting = "teacher", temperature: float = 1.0
) -> Tensor:
    """Weighted Plackett-Luce negative log-likelihood of the label-first ranking, averaged over the batch.

    With ``weighting="teacher"`` the loss of PLD. Convex in the student's logits, and unchanged when a constant is
    added to the logits of either network. ``labels`` (B,) in [0, C).
    """
    order = label_first_order(teacher.detach(), labels)
    weights = position_weights(teacher.detach(), order, weighting, temperature)
    return (weights * plackett_luce_terms(student, order)).sum(-1).mean()


def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-a between the orders of the entries of each row; (B, C), (B, C) to (B,), in [-1, 1].

    Tied pairs count as neither concordant nor discordant.
    """
    upper = torch.triu_indices(a.shape[-1], a.shape[-1], offset=1, device=a.device)

    def signs(values: Tensor) -> Tensor:
        return (values[..., upper[0]] - values[..., upper[1]]).sign()

    return (signs(a) * signs(b)).mean(-1)


def discordance(values: Tensor, correct: Tensor) -> float:
    """How often a loss ranks a wrong prediction better than a correct one: in [0, 1], 0.5 for an uninformative loss.

    ``values`` (N,) per-sample losses, ``correct`` (N,) bool. The share of pairs (one correct, one wrong) in which the
    wrong prediction has the lower loss, ties counting half; NaN where there is no such pair.
    """
    good, bad = values[correct], values[~correct].sort().values
    if not len(good) or not len(bad):
        return float("nan")
    below, upto = torch.searchsorted(bad, good, right=False), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean() / 2 / len(bad))
