"""Losses on features and on relations between the samples of a batch: pure functions.

Computed in float32 (float64 stays float64), the teacher as a constant, averaged over the batch. Features
are (B, D), or of any shape (B, ...) where they are flattened per sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses.logits import widen


def batch_gram(features: Tensor) -> Tensor:
    """Similarity of the samples of a batch, rows scaled to unit length; (B, ...) to (B, B).

    G = F F^T over flattened features F (B, D), then each row divided by its L2 norm (Tung and Mori, ICCV 2019,
    equations 1 and 2).
    """
    flat = widen(features).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the two :func:`batch_gram` matrices over B^2 (Tung and Mori, ICCV 2019, equation 4).

    The two networks' features may have any shapes with the same B.
    """
    gap = batch_gram(student) - batch_gram(teacher.detach())
    return gap.square().sum() / gap.shape[0] ** 2


def head_gradient(penult: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy in the weight of the last linear layer, itself differentiable.

    ``penult`` (B, D) are the inputs of the layer, ``logits`` (B, C) its outputs, ``labels`` (B,) in [0, C); (C, D) =
    (softmax(logits) - one-hot)^T penult / B. Rows tell like class activation maps which channels speak for a class.
    """
    error = F.softmax(widen(logits), -1) - F.one_hot(labels, logits.shape[-1])
    return error.T @ widen(penult) / len(labels)


def class_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the :func:`batch_gram` matrices of the classes, over C; (C, D_s), (C, D_t) to a scalar.

    With rows from :func:`head_gradient` the semantic distance of DisWOT for networks of different width.
    """
    return similarity_preserving(student, teacher) * student.shape[0]


def channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the correlations of channels, class by class, over C D; (C, D), (C, D) to a scalar.

    For each class the (D, D) outer product of its row, rows scaled to unit length (Liu et al., ICCV 2021, and the
    released code of DisWOT). Raises ``ValueError`` for different widths.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"channels cannot be compared between widths {student.shape[1]} and {teacher.shape[1]}")

    def correlations(rows: Tensor) -> Tensor:
        rows = widen(rows)
        return F.normalize(rows[:, :, None] * rows[:, None, :], dim=2)

    return (correlations(student) - correlations(teacher.detach())).square().sum() / student.numel()


def pairwise_distance(features: Tensor, eps: float = 1e-12) -> Tensor:
    """Euclidean distances between all samples, 0 on the diagonal with a zero gradient; (B, D) to (B, B)."""
    squares = features.square().sum(1)
    squared = (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp(min=eps)
    off_diagonal = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    return squared.sqrt() * off_diagonal


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between distances divided by their mean over the batch (Park et al., CVPR 2019, equations 6 to 8).

    The mean is over pairs of different samples; a batch of one sample has none, and the loss is 0. Unchanged when
    either network's features are scaled.
    """
    if len(student) < 2:
        return widen(student).sum() * 0.0

    def normalised(features: Tensor) -> Tensor:
        distances = pairwise_distance(widen(features).flatten(1))
        return distances / distances[distances > 0].mean().clamp(min=1e-12)

    with torch.no_grad():
        target = normalised(teacher)
    return F.smooth_l1_loss(normalised(student), target)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of all angles in triples of samples (Park et al., CVPR 2019, equations 9 and 10).

    The cosine at j of the angle i-j-k, for all i, j, k: (B, B, B) values.
    """

    def cosines(features: Tensor) -> Tensor:
        flat = widen(features).flatten(1)
        directions = F.normalize(flat[None, :, :] - flat[:, None, :], dim=2)
        return directions @ directions.transpose(1, 2)

    with torch.no_grad():
        target = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), target)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of projected student features to the teacher's, of the same shape (FitNets, equation 3)."""
    return F.mse_loss(widen(student), widen(teacher.detach()))
