"""What two neighbouring tokens of a span have to do with each other, in a teacher's and a student's eyes."""

from __future__ import annotations

from torch import Tensor

from kdbench.losses.divergences import log_softmax, same_vocabulary


def span_distance(student: Tensor, teacher: Tensor, first: Tensor, events: Tensor | None = None) -> Tensor:
    """Mean over pairs of ``||p_t * p_t+1 - q_t * q_t+1||^2``, products by element (Liu et al. 2026, span level).

    ``student`` and ``teacher`` (N, V) logits of scored positions, ``first`` (M,) int64 the first position of each pair
    (t, t + 1); a scalar, 0 without pairs. Where the logits are log-probabilities of top-k events and of all others
    together, ``events`` (N, k) int64 names the tokens of the first k: the sum then goes over the tokens that are known
    at both positions. The teacher is detached.
    """
    if len(first) == 0:
        return student.sum() * 0.0
    sides = same_vocabulary(student, teacher.detach())
    if events is None:
        mine, theirs = (_products(log_softmax(side), first) for side in sides)
        return (mine - theirs).square().sum(-1).mean()
    same = events[first].unsqueeze(2) == events[first + 1].unsqueeze(1)  # (M, k, k)
    pair, left, right = same.nonzero(as_tuple=True)
    one, two = first[pair], first[pair] + 1
    logs = [log_softmax(side) for side in sides]
    mine, theirs = ((log[one, left] + log[two, right]).exp() for log in logs)
    return (mine - theirs).square().sum() / len(first)


def _products(log_p: Tensor, first: Tensor) -> Tensor:
    return (log_p[first] + log_p[first + 1]).exp()
