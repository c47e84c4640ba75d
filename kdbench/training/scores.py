"""How hard or how informative training samples are, from short trainings, and pruning by it.

Scores are (N,) in which more is harder. Data pruning keeps a part of the samples by them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.training.selection import top
from kdbench.training.state import Values

Which = Literal["hardest", "easiest", "moderate"]


def el2n(probs: Tensor, labels: Tensor) -> Tensor:
    """Norm of the error |p - y|_2, in [0, sqrt 2]; probabilities (N, C), labels (N,) (Paul et al., NeurIPS 2021)."""
    return (probs - F.one_hot(labels, probs.shape[1])).square().sum(1).sqrt()


def grand(probs: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Norm of the cross-entropy's gradient in the last layer, bias included (GraNd: Paul et al., NeurIPS 2021).

    The gradient is the outer product of p - y and the layer's input (N, D) with a constant 1 appended.
    """
    return el2n(probs, labels) * (features.square().sum(1) + 1).sqrt()


class Forgetting(Values):
    """Counts forgetting events: a sample that was right when last seen is wrong (Toneva et al., ICLR 2019)."""

    kept = ("right", "learned", "events")

    def __init__(self, count: int, device: torch.device | str = "cpu") -> None:
        self.right = torch.zeros(count, dtype=torch.bool, device=device)
        self.learned = torch.zeros_like(self.right)
        self.events = torch.zeros(count, device=device)

    @torch.no_grad()
    def see(self, rows: Tensor, right: Tensor) -> None:
        """The network's answers for the samples at ``rows`` (B,) in a step of training: ``right`` (B,) bool."""
        self.events[rows] += (self.right[rows] & ~right).float()
        self.right[rows] = right
        self.learned[rows] |= right

    def scores(self) -> Tensor:
        """Events (N,); samples that were never right come after all others, one event above the most."""
        return torch.where(self.learned, self.events, self.events.max() + 1)


def memorization(right: Tensor, included: Tensor) -> Tensor:
    """Accuracy on each sample of the networks that trained on it minus that of the others; (N,) in [-1, 1].

    Feldman and Zhang, NeurIPS 2020. ``right`` and ``included`` (K, N) bool: of K networks trained on random subsets. 0
    for samples that were in all subsets or in none.
    """
    hits, inside = right.double(), included.double()
    n_in, n_out = inside.sum(0), (1 - inside).sum(0)
    gap = (hits * inside).sum(0) / n_in.clamp(min=1) - (hits * (1 - inside)).sum(0) / n_out.clamp(min=1)
    return torch.where((n_in > 0) & (n_out > 0), gap, torch.zeros_like(gap))


def prune(scores: Tensor, share: float, which: Which = "hardest", labels: Tensor | None = None) -> Tensor:
    """Positions of the ``share`` in (0, 1] of the samples that are kept, in ascending order, at least one.

    ``moderate`` keeps those nearest to the median. With ``labels`` (N,) the same share of each class is kept, at least
    one sample of each; ties go to the earlier position.
    """
    if labels is not None:
        parts = [(labels == label).nonzero().flatten() for label in torch.unique(labels)]
        return torch.cat([rows[prune(scores[rows], share, which)] for rows in parts]).sort().values
    scores = scores.double()
    if which == "easiest":
        scores = -scores
    elif which == "moderate":
        scores = -(scores - scores.quantile(0.5)).abs()
    return top(scores, max(1, round(share * len(scores)))).sort().values
