"""Classes that are split into subclasses: pure functions between distributions over C classes and over C * S of them.

Subclasses of class c are the outputs c * S to c * S + S - 1. Everything is in float32, float64 stays float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.losses.contrastive import info_nce
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import widen


def by_class(values: Tensor, subclasses: int) -> Tensor:
    """(..., C * S) as (..., C, S). Raises ``ValueError`` where the width is no multiple of ``subclasses``."""
    if subclasses < 1 or values.shape[-1] % subclasses:
        raise ValueError(f"{values.shape[-1]} outputs cannot be classes of {subclasses} subclasses each")
    return values.reshape(*values.shape[:-1], values.shape[-1] // subclasses, subclasses)


def class_logits(logits: Tensor, subclasses: int) -> Tensor:
    """Log-sum-exp over the subclasses of each class, (..., C * S) to (..., C).

    The softmax of the result is the sum of the subclass probabilities within each class.

    >>> import torch
    >>> class_logits(torch.zeros(1, 4), 2).exp().tolist()
    [[2.0, 2.0]]
    """
    return by_class(widen(logits), subclasses).logsumexp(dim=-1)


def joint_log_probs(logits: Tensor, scores: Tensor, temperature: float = 1.0) -> Tensor:
    """``log [ softmax(logits / temperature)_c * softmax_s(scores_c) ]``, (B, C) and (B, C, S) to (B, C * S).

    Summed over the subclasses of a class it is the probability of the class, whatever the scores are. A score of
    minus infinity rules a subclass out; not all of a class may be.
    """
    return (log_softmax(logits, temperature)[..., None] + log_softmax(scores)).flatten(-2)


def subclass_contrast(logits: Tensor, temperature: float = 0.1) -> Tensor:
    """What makes a network use all of its subclasses (Müller, Kornblith and Hinton 2020, arXiv 2002.03936, section 2).

    ``-mean_i log [ exp(v_i . v_i / temperature) / sum_j exp(v_i . v_j / temperature) ]`` with v the subclass logits
    (B, C * S), each row centred and scaled to unit length: log B where all rows are alike.
    """
    centred = widen(logits) - widen(logits).mean(dim=-1, keepdim=True)
    return info_nce(centred, centred, temperature)


def own_subclass(values: Tensor, labels: Tensor) -> Tensor:
    """Most probable subclass (B,) int64 in [0, S) within the class that ``labels`` (B,) name; ``values`` (B, C, S)."""
    return values[torch.arange(len(labels), device=values.device), labels].argmax(dim=-1)
