"""Losses between the layers of two networks of different depth and width: which pairs of layers, and how compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses.contrastive import cosines
from kdbench.losses.features import hint
from kdbench.losses.information import halves_mi_alpha
from kdbench.losses.logits import widen
from kdbench.losses.transport import sinkhorn

Comparison = Literal["mse", "l2_mse", "cosine", "infonce", "mi"]
Layers = Literal["last", "uniform", "transport"]


def layer_pairs(layers: Layers, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs (student, teacher) that are compared, of ``student`` and ``teacher`` states each, the embeddings first.

    ``last``: the last of both; ``uniform``: each of the student's with the one at its relative depth in the teacher
    (as in TinyBERT); ``transport``: all, weighted by a plan.
    """
    if layers == "last":
        return [(student - 1, teacher - 1)]
    if layers == "uniform":
        return [(i, round(i * (teacher - 1) / max(1, student - 1))) for i in range(student)]
    return [(i, j) for i in range(student) for j in range(teacher)]


def transport_weights(costs: Tensor, eps: float = 0.1, iterations: int = 50) -> Tensor:
    """Plan between layers with equal masses on each side, 1 in all; costs (S, T) to (S, T), without gradient.

    The earth mover's distance between layers (BERT-EMD: Li et al., EMNLP 2020), regularised; ``eps``
    against costs that have been shifted to begin at 0 and scaled to a mean of 1, so that their sign and size do not
    matter.
    """
    with torch.no_grad():
        shifted = costs - costs.min()
        cost = shifted / shifted.mean().clamp(min=1e-12)
        rows, columns = (cost.new_full((size,), -math.log(size)) for size in cost.shape)
        return sinkhorn(cost, eps, iterations, log_rows=rows, log_columns=columns)


def compare(kind: Comparison, student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of features (B, D) that have the same width, a scalar.

    ``mse``: mean over all entries; ``l2_mse``: squared distance of unit vectors (PKD: Sun et al., EMNLP
    2019), twice the ``cosine`` distance 1 - cos.
    """
    if kind == "mse":
        return hint(student, teacher)
    if kind == "cosine":
        return (1 - F.cosine_similarity(widen(student), widen(teacher.detach()), dim=1)).mean()
    unit = [F.normalize(widen(features), dim=1) for features in (student, teacher.detach())]
    return (unit[0] - unit[1]).square().sum(1).mean()


class LayerMatch(nn.Module):
    """Intermediate loss of two networks: learned projections, trained along with the student and dropped afterwards.

    ``mse``, ``l2_mse`` and ``cosine`` project each student state to the teacher's width. ``infonce`` and ``mi`` are
    -I_alpha (alpha = 1 for ``infonce``) with the critic cos(W_t t, W_s s) / ``temperature`` on ``dim`` dimensions: rows
    of the batch are the samples. A batch of one row says nothing about information; the loss is then 0.
    """

    def __init__(
        self,
        kind: Comparison,
        layers: Layers,
        student: tuple[int, int],
        teacher: tuple[int, int],
        *,
        alpha: float = 1.0,
        temperature: float = 0.1,
        dim: int = 64,
    ) -> None:
        """``student`` and ``teacher`` are (number of states, width); weights come from the global generators."""
        super().__init__()
        self.kind, self.layers, self.temperature = kind, layers, temperature
        self.alpha = 1.0 if kind == "infonce" else alpha
        self.shape = (student[0], teacher[0])
        self.pairs = layer_pairs(layers, *self.shape)
        critic = kind in ("infonce", "mi")
        out = dim if critic else teacher[1]
        ours, theirs = ({str(pair[side]) for pair in self.pairs} for side in (0, 1))
        self.ours = nn.ModuleDict({i: nn.Linear(student[1], out, bias=not critic) for i in sorted(ours)})
        self.theirs = nn.ModuleDict({j: nn.Linear(teacher[1], out, bias=False) for j in sorted(theirs) if critic})

    def cost(self, student: Tensor, teacher: Tensor, pair: tuple[int, int]) -> Tensor:
        """Of one pair of states, (B, D_s) and (B, D_t), to a scalar."""
        ours = self.ours[str(pair[0])](widen(student))
        if self.kind not in ("infonce", "mi"):
            return compare(self.kind, ours, teacher)
        scores = cosines(self.theirs[str(pair[1])](widen(teacher.detach())), ours) / self.temperature
        if len(scores) < 2:
            return scores.sum() * 0.0
        return -halves_mi_alpha(scores, self.alpha)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over the pairs of states, or the plan's; all states (B, D_s) and (B, D_t) of both networks."""
        costs = torch.stack([self.cost(student[i], teacher[j], (i, j)) for i, j in self.pairs])
        if self.layers != "transport":
            return costs.mean()
        return (transport_weights(costs.view(self.shape)) * costs.view(self.shape)).sum()
