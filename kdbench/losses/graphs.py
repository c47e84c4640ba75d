"""Graphs over tokens: the neighbourhoods that a network's features make, and how far two networks' graphs are apart.

Tokens are positions of feature maps or patches of transformers, of one image (B, N, D) or pooled over the images of a
batch (M, D). Pure functions, in float32 (float64 stays float64), the teacher as a constant.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses.features import pairwise_distance
from kdbench.losses.logits import widen


def context(tokens: Tensor) -> Tensor:
    """How much each token of an image attends to the others, softmax(F F^T / sqrt(D)); (B, N, D) to (B, N, N).

    Rows are distributions (Zhang, Liu and He 2023, arXiv 2306.12442, contextual loss).
    """
    tokens = widen(tokens)
    return F.softmax(tokens @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[-1]), dim=-1)


def contextual(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of the two :func:`context` matrices; tokens (B, N, D_s) and (B, N, D_t) to a scalar."""
    return F.mse_loss(context(student), context(teacher.detach()))


def gather_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """The tokens of all images at some positions, pooled; (B, N, D), (B, m) int64 to (B m, D)."""
    return tokens.gather(1, positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])).flatten(0, 1)


def nearest(tokens: Tensor, k: int) -> Tensor:
    """The k nearest other tokens of each by Euclidean distance, nearest first; (M, D) to (M, min(k, M - 1)) int64."""
    distances = pairwise_distance(widen(tokens.detach()))
    distances.fill_diagonal_(torch.inf)
    return distances.topk(min(k, len(tokens) - 1), dim=1, largest=False).indices


def knn_graph(tokens: Tensor, neighbours: Tensor, sigma: float | None = None) -> Tensor:
    """Weighted adjacency exp(-|t_i - t_j|^2 / (2 sigma)) for j among the neighbours of i, else 0; (M, D) to (M, M).

    ``neighbours`` (M, k) as of :func:`nearest`. ``sigma`` above 0, in squared units of the features; None: the median
    squared distance of all pairs of these tokens, so that the graph is that of ``c * tokens``, too.
    Weights are in [0, 1], the matrix need not be symmetric (arXiv 2306.12442, graph construction).
    """
    squared = pairwise_distance(widen(tokens)).square()
    if sigma is None:
        pairs = ~torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
        between = squared[pairs] if pairs.any() else squared.new_ones(1)
        # Its gradient is that of the mean, so that none points along the scale of the tokens.
        scale = (between.detach().median() / between.detach().mean() * between.mean()).clamp(min=1e-12)
    else:
        scale = squared.new_tensor(sigma)
    weights = torch.exp(-squared.gather(1, neighbours) / (2 * scale))
    return torch.zeros_like(squared).scatter(1, neighbours, weights)


def local_preserving(student: Tensor, teacher: Tensor, *, reverse: bool = False) -> Tensor:
    """KL(softmax of the teacher's rows || softmax of the student's), mean over rows; adjacencies (M, M) to a scalar.

    Every row is a distribution over all M tokens, those that are no neighbours at weight 0 among them.
    ``reverse`` swaps the two distributions; the teacher is the constant in both (arXiv 2306.12442, local preserving
    loss, which sums over rows).
    """
    mine, theirs = F.log_softmax(student, 1), F.log_softmax(teacher.detach(), 1)
    first, second = (mine, theirs) if reverse else (theirs, mine)
    return F.kl_div(second, first, reduction="batchmean", log_target=True)


def neighbour_overlap(student: Tensor, teacher: Tensor, k: int) -> float:
    """Share of each token's k nearest neighbours that two networks agree on, mean over tokens. In [0, 1].

    ``student`` (M, D_s) and ``teacher`` (M, D_t) are the same tokens; 1 where there is a single one.
    """
    mine, theirs = nearest(student, k), nearest(teacher, k)
    if not mine.shape[1]:
        return 1.0
    return float((mine.unsqueeze(2) == theirs.unsqueeze(1)).any(2).double().mean())
