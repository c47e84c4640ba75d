"""Reverse KL restricted to a few tokens of each position: the student's most probable ones, the teacher's, or both.

S is the support of a position, q the student, p the teacher, both over the whole vocabulary.

============  ====================================================================================================
mode          value
============  ====================================================================================================
``trunc``     ``sum_S q (log q - log p)``; its gradient also drains probability out of S
``trunc_sg``  the same with the student held constant within the bracket
``renorm``    KL of both distributions normalised again on S
``tail``      KL over S and one bucket with all the rest
``inter_sg``  both normalised on S, the student held constant within the bracket; meant for the intersection
============  ====================================================================================================

``grad trunc - grad trunc_sg = grad sum_S q``, exactly. An empty support contributes 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.losses.divergences import log_softmax, same_vocabulary

Support = Literal["student", "teacher", "both"]
Mode = Literal["trunc", "trunc_sg", "renorm", "tail", "inter_sg"]

LEAST = -1e4
"""Stands for the logarithm of 0 where a distribution is normalised on a support."""


def support_mask(student: Tensor, teacher: Tensor, k: int, support: Support = "student") -> Tensor:
    """(N, V) bool: the ``k`` most probable tokens of either, or those that both have among theirs; no gradient.

    Raises ``ValueError`` for an unknown support or k < 1.
    """
    student, teacher = same_vocabulary(student.detach(), teacher.detach())
    if k < 1:
        raise ValueError(f"a support has at least one token, not {k}")
    k = min(k, student.shape[-1])
    masks = {}
    for name, logits in (("student", student), ("teacher", teacher)):
        masks[name] = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(k, dim=-1).indices, True)
    if support == "both":
        return masks["student"] & masks["teacher"]
    if support not in masks:
        raise ValueError(f"a support is 'student', 'teacher' or 'both', not {support!r}")
    return masks[support]


def mass(logits: Tensor, mask: Tensor) -> Tensor:
    """(N,) probability of the tokens of a mask (N, V); with gradient."""
    return (log_softmax(logits).exp() * mask).sum(-1)


def restricted(student: Tensor, teacher: Tensor, mask: Tensor, mode: Mode = "trunc") -> Tensor:
    """Values (N,) of logits (N, V) on a support ``mask`` (N, V), by ``mode``; the teacher is detached.

    Raises ``ValueError`` for an unknown mode.
    """
    student, teacher = same_vocabulary(student, teacher.detach())
    log_q, log_p = log_softmax(student), log_softmax(teacher)
    if mode in ("renorm", "inter_sg"):
        log_q, log_p = (log_softmax(logits.masked_fill(~mask, LEAST)) for logits in (log_q, log_p))
    bracket = log_q - log_p
    if mode in ("trunc_sg", "inter_sg"):
        bracket = bracket.detach()
    elif mode not in ("trunc", "renorm", "tail"):
        raise ValueError(f"a mode is 'trunc', 'trunc_sg', 'renorm', 'tail' or 'inter_sg', not {mode!r}")
    value = torch.where(mask, log_q.exp() * bracket, torch.zeros_like(bracket)).sum(-1)
    if mode != "tail":
        return value
    rest_q, rest_p = (logits.masked_fill(mask, LEAST).logsumexp(-1) for logits in (log_q, log_p))
    return value + rest_q.exp() * (rest_q - rest_p)
