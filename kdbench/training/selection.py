"""Which samples to take: scores of samples, and ways to choose a set by them.

Scores are (N,) tensors in which more is more informative; choices are (k,) int64 positions. Randomness comes from the
generator that is given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def margin_informativeness(probs: Tensor) -> Tensor:
    """1 - (largest - second largest probability), in [0, 1]; (N, C) to (N,)."""
    top = probs.topk(2, -1).values
    return 1 - (top[:, 0] - top[:, 1])


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy in nats; (N, C) to (N,)."""
    each: Tensor = torch.special.entr(probs)
    return each.sum(-1)


def top(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest scores, the largest first; ties by position."""
    return scores.argsort(descending=True, stable=True)[:count]


def draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different positions, drawn one after the other in proportion to the weights that are left.

    ``weights`` (N,) >= 0. Where fewer than ``count`` are positive all of those are taken and the rest drawn uniformly
    from the others.
    """
    positive = int((weights > 0).sum())
    drawn = torch.multinomial(weights, min(count, positive), generator=generator) if positive else weights.new_empty(0)
    drawn = drawn.long()
    if len(drawn) == count:
        return drawn
    left = torch.ones(len(weights), dtype=torch.bool)
    left[drawn] = False
    others = left.nonzero().flatten()
    extra = torch.randperm(len(others), generator=generator)[: count - len(drawn)]
    return torch.cat([drawn, others[extra]])


def k_center(features: Tensor, centers: Tensor, count: int) -> Tensor:
    """Greedy k-center (Sener and Savarese, ICLR 2018): again and again the point farthest from all centers.

    ``features`` (N, D), ``centers`` (M, D) of the points that are there already; positions (count,) in the order of
    choice. The largest distance to a center is at most twice the best possible.
    """
    distance = torch.cdist(features, centers).amin(1) if len(centers) else torch.full((len(features),), torch.inf)
    chosen = []
    for _ in range(min(count, len(features))):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = torch.minimum(distance, torch.cdist(features, features[farthest : farthest + 1]).flatten())
        distance[farthest] = -1.0  # never twice, also among duplicates
    return torch.tensor(chosen, dtype=torch.int64)


def per_class(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A random ``share`` in (0, 1] of the positions of each class, at least one each, in ascending order; labels (N,).

    Unlabelled samples (-1) count as a class of their own.
    """
    chosen = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def robust_distribution(informativeness: Tensor, wrong: int) -> tuple[Tensor, float]:
    """Sampling distribution that is best when the teacher is wrong on the ``wrong`` worst-placed of n points.

    Baykal et al., ICLR 2023: maximise over distributions p the minimum over sets S of n - wrong points of
    sum_{i in S} p_i g_i. With g sorted downwards and H_k = sum_{i <= k} 1 / g_i the optimum takes the k points of the
    largest g, k maximising (k - wrong) / H_k, with p_i proportional to 1 / g_i; its value is (k - wrong) / H_k.

    ``informativeness`` (n,) >= 0, ``wrong`` in [0, n). Returns p (n,) float64, which sums to 1, and the value. Where
    all points are equally informative p is uniform.
    """
    count = len(informativeness)
    if not 0 <= wrong < count:
        raise ValueError(f"the number of wrong points is between 0 and {count - 1}, not {wrong}")
    gain = informativeness.double().clamp(min=1e-12)  # a point of no interest at all has an infinite weight
    order = gain.argsort(descending=True, stable=True)
    harmonic = (1 / gain[order]).cumsum(0)
    values = (torch.arange(1, count + 1, dtype=torch.float64) - wrong) / harmonic
    # Values that differ by rounding alone are ties; the larger support is the more robust choice.
    best = int((values >= values.max() * (1 - 1e-12)).nonzero().max())
    probabilities = torch.zeros(count, dtype=torch.float64)
    support = order[: best + 1]
    probabilities[support] = (1 / gain[support]) / harmonic[best]
    return probabilities, float(values[best])
