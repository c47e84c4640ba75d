"""Contrastive losses on paired samples: pure functions of two (B, D) sets of features.

Row i of one set belongs to row i of the other, all other rows are its negatives. Similarity is the cosine, so the
length of a feature does not matter. Computed in float32 (float64 stays float64), averaged over the batch; both sides
get gradients, so a teacher's features are detached by the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.losses.logits import widen


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs of rows; (N, D), (M, D) to (N, M). A row of zeros has the cosine 0 with every other."""
    return F.normalize(widen(a), dim=1) @ F.normalize(widen(b), dim=1).T


def info_nce(query: Tensor, key: Tensor, temperature: float = 0.1) -> Tensor:
    """-mean_i log [ exp(s_ii / temperature) / sum_j exp(s_ij / temperature) ] with s the cosines of query and key.

    Each query is told from the keys of the other B - 1 rows (van den Oord et al. 2018, arXiv 1807.03748, equation 4):
    log B where all rows are alike, at most log B + 2 / temperature. ``query`` and ``key`` (B, D), ``temperature``
    above 0.
    """
    logits = cosines(query, key) / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """Contrastive loss of two views of a batch (SimCLR: Chen et al., ICML 2020, equation 1).

    All 2B rows are queries; the positive of a row is the other view of its sample, the negatives are the remaining
    2B - 2 rows of both views. Symmetric in ``a`` and ``b``, both (B, D); ``temperature`` above 0.
    """
    views = torch.cat([a, b])
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    logits = (cosines(views, views) / temperature).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views), device=views.device).roll(len(a)))
