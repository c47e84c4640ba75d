"""Class prototypes: mean features of a class, how two sets of them are aligned, and what they say of a sample.

Features and prototypes are compared on the unit sphere: ``d^2 = |f / |f| - c / |c||^2 = 2 - 2 cos(f, c)``, in [0, 4].
C is the number of classes, D that of features, N that of samples; everything is in float32, float64 stays float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.losses.centroids import class_sums
from kdbench.losses.divergences import log_softmax


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, float32 or wider; rows of zeros stay."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (N, M) of the rows of (N, D) and (M, D)."""
    return unit(a) @ unit(b).T


def alignment_loss(source: Tensor, target: Tensor, weights: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrast of prototypes (C, D) of two domains: those of a class attract, those of different classes repel.

    ``-log exp(cos(s_k, t_k) / temperature) / sum_j exp(cos(s_k, t_j) / temperature)`` and the same with the domains
    exchanged, half each; mean over the classes by ``weights`` (C,) >= 0. A class of weight 0 is left out, of the sums
    over j too. 0 where no class is left.
    """
    kept = weights > 0
    if not bool(kept.any()):
        return (source.sum() + target.sum()) * 0.0
    scores = cosines(source[kept], target[kept]) / temperature
    both = log_softmax(scores).diagonal() + log_softmax(scores.T).diagonal()
    share = weights[kept] / weights[kept].sum()
    return -(share * both).sum() / 2


def prototype_log_probs(features: Tensor, prototypes: Tensor, known: Tensor, temperature: float = 0.1) -> Tensor:
    """``log softmax(-d^2 / temperature)`` (N, C) of features (N, D), by the prototypes of classes ``known`` (C,).

    A class without a prototype counts as being as near as the nearest: it would else never be chosen, and so never have
    one. Where no class is known all are alike.
    """
    if not bool(known.any()):
        return features.new_full((len(features), len(known)), -math.log(len(known)))
    squared = 2 - 2 * cosines(features, prototypes)
    nearest = squared[:, known].amin(1, keepdim=True)
    return log_softmax(-torch.where(known, squared, nearest) / temperature)


def reweighted(log_probs: Tensor, prototype_log_probs: Tensor) -> Tensor:
    """Log-probabilities (N, C) in proportion to the product of two distributions over the same classes."""
    return log_softmax(log_probs + prototype_log_probs)


def distance_ratio(source: Tensor, target: Tensor, classes: Tensor) -> dict[str, float]:
    """Cosine distances between prototypes (C, D) of two domains, in [0, 2], over the ``classes`` (C,) bool.

    ``same``: mean over the classes of the distance between its two prototypes; ``different``: mean over pairs of
    classes; ``ratio``: the first over the second, 0 where the domains agree on prototypes that are apart. Raises
    ``ValueError`` for less than two classes.
    """
    if int(classes.sum()) < 2:
        raise ValueError(f"distances between classes need two classes or more, not {int(classes.sum())}")
    distance = 1 - cosines(source[classes], target[classes])
    apart = ~torch.eye(len(distance), dtype=torch.bool, device=distance.device)
    same, different = float(distance.diagonal().mean()), float(distance[apart].mean())
    return {"same": same, "different": different, "ratio": same / max(different, 1e-12)}


class Prototypes(nn.Module):
    """Prototypes of C classes that follow a network while it trains: declare it as ``state`` of ``task.fit``."""

    table: Tensor
    """(C, D), means of unit features."""
    known: Tensor
    """(C,) bool: classes that have had a sample."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(classes, features))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))

    def follow(self, features: Tensor, labels: Tensor, decay: float) -> Tensor:
        """Move towards the means of ``features`` (N, D) by ``labels`` (N,), -1 for none; the new prototypes (C, D).

        A class keeps ``decay`` of its own, or nothing where it had no sample before; classes without a sample stay.
        The value that is given back is the moved prototype, and its gradient is that of the batch's mean: a gradient
        scaled by ``1 - decay`` would leave nothing to learn from.
        """
        sums, counts = class_sums(unit(features), labels, len(self.known))
        means, present = sums / counts.clamp(min=1)[:, None], counts > 0
        with torch.no_grad():
            kept = torch.where(self.known, decay, 0.0)[:, None]
            self.table.copy_(torch.where(present[:, None], kept * self.table + (1 - kept) * means, self.table))
            self.known.logical_or_(present)
        return self.table.clone() + torch.where(present[:, None], means - means.detach(), torch.zeros_like(means))
