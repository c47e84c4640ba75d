"""Class centroids of a classifier's outputs, and how far the outputs of a class spread around them.

For a classifier x -> p_x the conditional mutual information of input and prediction given the label is
I(X; Yhat | Y) = E_x KL(p_x || q_y), with q_y the mean of p_x over the samples of class y (Ye et al., ICLR 2024,
section 4). It is 0 exactly where the outputs are constant within each class. C is the number of classes, B that of
samples; everything is in float32, float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import UNLABELLED


def class_sums(probs: Tensor, labels: Tensor, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Sums (C, C) of the outputs (B, C) by label (B,), and numbers of samples (C,); -1 is no label.

    Of features (B, D) the sums (C, D), where ``classes`` says how many there are.
    """
    known = labels != UNLABELLED
    one_hot = F.one_hot(labels[known], probs.shape[1] if classes is None else classes).to(probs.dtype)
    return one_hot.T @ probs[known], one_hot.sum(0)


def class_centroids(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean output of each class, (C, C) with rows that sum to 1; uniform for classes without a sample.

    ``probs`` (B, C) are probabilities, ``labels`` (B,) int64 with -1 for samples that do not count.
    """
    sums, counts = class_sums(probs, labels)
    return normalise_rows(sums, counts)


def normalise_rows(sums: Tensor, counts: Tensor) -> Tensor:
    """Centroids (C, C) from what :func:`class_sums` gives; uniform rows for classes without a sample."""
    filled = torch.where(counts[:, None] > 0, sums, torch.ones_like(sums))
    return filled / filled.sum(1, keepdim=True)


def conditional_mutual_information(logits: Tensor, labels: Tensor, centroids: Tensor | None = None) -> Tensor:
    """Mean over the labelled samples of KL(p_x || q_y) in nats, a scalar >= 0; 0 where no sample is labelled.

    ``logits`` (B, C) and ``labels`` (B,). ``centroids`` (C, C) are a constant; None: those of these very samples, for
    which the value is the empirical conditional mutual information H(Yhat | Y) - H(Yhat | X).
    """
    log_probs = log_softmax(logits)
    if centroids is None:
        centroids = class_centroids(log_probs.detach().exp(), labels)
    known = labels != UNLABELLED
    if not bool(known.any()):
        return log_probs.sum() * 0.0
    log_centroids = centroids.detach().clamp(min=torch.finfo(centroids.dtype).tiny).log()
    target = log_centroids[labels[known]]
    return (log_probs[known].exp() * (log_probs[known] - target)).sum(1).mean()


class Centroids(nn.Module):
    """Centroids that follow a network while it trains: declare it as ``state`` of ``task.fit``."""

    table: Tensor
    """(C, C), rows sum to 1."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    @torch.no_grad()
    def follow(self, probs: Tensor, labels: Tensor, decay: float = 0.0) -> None:
        """Move the centroids of the classes that occur to ``decay`` of their own and 1 - ``decay`` of the new ones."""
        sums, counts = class_sums(probs.detach(), labels)
        new = decay * self.table + (1 - decay) * normalise_rows(sums, counts)
        self.table.copy_(torch.where(counts[:, None] > 0, new, self.table))
