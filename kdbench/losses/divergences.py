"""Divergences between a teacher's and a student's categorical distributions, one value per position.

Every function takes ``(student_logits, teacher_logits)``, both ``(..., V)``, in this order, and returns ``(...)``.
With p the teacher's and q the student's distribution at one position:

* both are ``softmax(logits / temperature)``; ``temperature`` is a number or a tensor of shape ``(...)`` (one per
  position); with ``scale_t2`` the value is multiplied by its square, so that the size of the gradient does not
  depend on it (Hinton et al. 2015, section 2);
* the computation is in float32 (float64 stays float64), whatever the precision of the logits;
* the teacher is detached; gradients flow through every occurrence of q;
* ``0 log 0 = 0``; a vocabulary entry whose logit is ``-inf`` has probability 0, and a term of the sum that would be
  infinite because of it is left out;
* vocabularies that differ by padding at the end are cut to the smaller one.

The logits may also be log-probabilities over a common set of events, such as the top k tokens and one bucket for
the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from kdbench.errors import UsageError, did_you_mean

PADDING = 1 / 16
"""Largest difference between two vocabulary sizes, as a fraction of the smaller, that is taken for padding."""


class Divergence(Protocol):
    """What all divergences of this module look like once their own options are bound."""

    def __call__(
        self, student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True
    ) -> Tensor: ...


# --- from logits to log-probabilities ---------------------------------------------------------------------------------


def same_vocabulary(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits cut to the smaller vocabulary.

    Raises ``ValueError`` where the sizes differ by more than padding does: those are different tokenizers.
    """
    small, large = sorted((student.shape[-1], teacher.shape[-1]))
    if small == large:
        return student, teacher
    if large > small * (1 + PADDING):
        raise ValueError(
            f"the student has {student.shape[-1]} classes and the teacher {teacher.shape[-1]}: "
            "different vocabularies, not padding; align them first or use losses.tokens.uld"
        )
    return student[..., :small], teacher[..., :small]


def log_softmax(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """``log softmax(logits / temperature)`` over the last dimension, in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not isinstance(temperature, Tensor):
        return torch.log_softmax(logits / temperature, dim=-1)
    impossible = torch.isneginf(logits)  # dividing them would give the temperature an undefined gradient
    tempered = logits.masked_fill(impossible, 0.0) / temperature.unsqueeze(-1)
    return torch.log_softmax(tempered.masked_fill(impossible, -math.inf), dim=-1)


def _pair(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """``(log q, log p)``, the teacher's without gradient."""
    student, teacher = same_vocabulary(student, teacher.detach())
    return log_softmax(student, temperature), log_softmax(teacher, temperature)


def _scaled(value: Tensor, temperature: float | Tensor, scale_t2: bool) -> Tensor:
    return value * temperature**2 if scale_t2 else value


# --- on log-probabilities ---------------------------------------------------------------------------------------------


def _without_omissions(sums: Tensor) -> bool:
    """Whether nothing has to be left out of these sums: a term with ``-inf`` in it would make its sum infinite or NaN.

    To be asked on the CPU alone, where it spares the masks: elsewhere it would wait for the device.
    """
    return bool(sums.isfinite().all())


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """``KL(a || b) = sum a (log a - log b)`` over the last dimension of two log-probabilities."""
    a = log_a.exp()
    if log_a.device.type == "cpu" and _without_omissions(value := (a * (log_a - log_b)).sum(-1)):
        return value
    impossible = torch.isneginf(log_a) | torch.isneginf(log_b)
    difference = log_a.masked_fill(impossible, 0.0) - log_b.masked_fill(impossible, 0.0)
    return (a * difference).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """``-sum p log p`` over the last dimension of log-probabilities, in nats."""
    return _expected(log_p, log_p).neg()


def _expected(log_p: Tensor, values: Tensor) -> Tensor:
    """``sum p values`` over the last dimension, without the terms in which a value is ``-inf``."""
    p = log_p.exp()
    if log_p.device.type == "cpu" and _without_omissions(total := (p * values).sum(-1)):
        return total
    return (p * values.masked_fill(torch.isneginf(values), 0.0)).sum(-1)


def log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """``log(weight a + (1 - weight) b)``; ``weight`` in [0, 1], exact at both ends."""
    if weight == 1:
        return log_a
    if weight == 0:
        return log_b
    nowhere = torch.isneginf(log_a) & torch.isneginf(log_b)
    a = log_a.masked_fill(nowhere, 0.0) + math.log(weight)
    b = log_b.masked_fill(nowhere, 0.0) + math.log1p(-weight)
    return torch.logaddexp(a, b).masked_fill(nowhere, -math.inf)


# --- Kullback-Leibler and its relatives -------------------------------------------------------------------------------


def ce_soft(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """Soft cross-entropy ``-sum p log q``: the gradient of :func:`fkl`, larger than it by the entropy of p."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(-_expected(log_p, log_q), temperature, scale_t2)


def fkl(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """Forward ``KL(p || q)``. Gradient in the student's logits at temperature 1: ``q - p``."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(kl(log_p, log_q), temperature, scale_t2)


def rkl(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """Reverse ``KL(q || p)``. Gradient in the student's logits at temperature 1: ``q (log q - log p - KL(q || p))``."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(kl(log_q, log_p), temperature, scale_t2)


def sym_kl(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """``KL(p || q) + KL(q || p)``."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(kl(log_p, log_q) + kl(log_q, log_p), temperature, scale_t2)


def sfkl(
    student: Tensor, teacher: Tensor, *, lam: float = 0.1, temperature: float | Tensor = 1.0, scale_t2: bool = True
) -> Tensor:
    """Skewed forward KL ``KL(p || lam p + (1 - lam) q)`` (Ko et al. 2024, DistiLLM, section 3.1); 0 <= lam < 1."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(kl(log_p, log_mixture(log_p, log_q, _fraction("lam", lam))), temperature, scale_t2)


def srkl(
    student: Tensor, teacher: Tensor, *, lam: float = 0.1, temperature: float | Tensor = 1.0, scale_t2: bool = True
) -> Tensor:
    """Skewed reverse KL ``KL(q || (1 - lam) p + lam q)`` (Ko et al. 2024, DistiLLM, section 3.1); 0 <= lam < 1."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(kl(log_q, log_mixture(log_q, log_p, _fraction("lam", lam))), temperature, scale_t2)


def jsd(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: float | Tensor = 1.0, scale_t2: bool = True
) -> Tensor:
    """Generalised Jensen-Shannon divergence ``beta KL(p || M) + (1 - beta) KL(q || M)``, ``M = beta p + (1 - beta) q``.

    At most the entropy of (beta, 1 - beta). The ends are defined as ``beta=0``: :func:`fkl` and ``beta=1``:
    :func:`rkl` (Agarwal et al. 2024, GKD, section 2), although the formula itself tends to 0 there.
    """
    log_q, log_p = _pair(student, teacher, temperature)
    if _fraction("beta", beta) == 0:
        value = kl(log_p, log_q)
    elif beta == 1:
        value = kl(log_q, log_p)
    else:
        log_m = log_mixture(log_p, log_q, beta)
        value = beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)
    return _scaled(value, temperature, scale_t2)


def akl(
    student: Tensor, teacher: Tensor, *, mu: float = 0.5, temperature: float | Tensor = 1.0, scale_t2: bool = True
) -> Tensor:
    """Adaptive mix of forward and reverse KL by where the distributions differ (Wu et al. 2025).

    The head of p are its most probable tokens before the one at which their cumulative mass reaches ``mu``; that
    token begins the tail. With g the L1 distance of p and q over each part, the value is
    ``g_head / (g_head + g_tail) KL(p || q) + g_tail / (g_head + g_tail) KL(q || p)``; the weights have no gradient.
    """
    log_q, log_p = _pair(student, teacher, temperature)
    head, tail = head_tail_gaps(log_p, log_q, mu)
    weight = head / (head + tail).clamp_min(torch.finfo(head.dtype).tiny)
    return _scaled(weight * kl(log_p, log_q) + (1 - weight) * kl(log_q, log_p), temperature, scale_t2)


@torch.no_grad()
def head_tail_gaps(log_p: Tensor, log_q: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """``sum |p - q|`` over the head and over the tail of p, as :func:`akl` defines them; (...) each, no gradient."""
    p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
    gap = (p - log_q.exp().gather(-1, order)).abs()
    in_head = p.cumsum(-1) < mu
    return (gap * in_head).sum(-1), (gap * ~in_head).sum(-1)


# --- other families ---------------------------------------------------------------------------------------------------


def tvd(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """Total variation distance ``0.5 sum |p - q|``, in [0, 1] before the factor of the temperature."""
    log_q, log_p = _pair(student, teacher, temperature)
    return _scaled(0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1), temperature, scale_t2)


def hellinger(student: Tensor, teacher: Tensor, *, temperature: float | Tensor = 1.0, scale_t2: bool = True) -> Tensor:
    """Hellinger distance ``sqrt(0.5 sum (sqrt p - sqrt q)^2)``, in [0, 1] before the factor of the temperature.

    Where p = q the gradient is 0, one of the subgradients of the distance at its minimum.
    """
    log_q, log_p = _pair(student, teacher, temperature)
    squared = 0.5 * ((log_p / 2).exp() - (log_q / 2).exp()).square().sum(-1)
    apart = squared > 0
    distance = torch.where(apart, squared.where(apart, torch.ones_like(squared)).sqrt(), torch.zeros_like(squared))
    return _scaled(distance.clamp_max(1.0), temperature, scale_t2)


def ab_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_t2: bool = True,
) -> Tensor:
    """Alpha-beta divergence (Cichocki et al. 2011) for alpha, beta > 0 and the limits (1, 0) and (0, 1).

    ``-1 / (alpha beta) sum [p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta) - beta / (alpha + beta)
    q^(alpha + beta)]``; (1, 0) is :func:`fkl`, (0, 1) is :func:`rkl`, (0.5, 0.5) four times the squared Hellinger
    distance, (1, 1) half the squared Euclidean distance. Raises ``ValueError`` elsewhere.
    """
    log_q, log_p = _pair(student, teacher, temperature)
    if (alpha, beta) == (1, 0):
        return _scaled(kl(log_p, log_q), temperature, scale_t2)
    if (alpha, beta) == (0, 1):
        return _scaled(kl(log_q, log_p), temperature, scale_t2)
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha and beta are positive, or (1, 0), or (0, 1); not ({alpha}, {beta})")
    total = alpha + beta
    impossible = torch.isneginf(log_p) | torch.isneginf(log_q)
    both = alpha * log_p.masked_fill(impossible, 0.0) + beta * log_q.masked_fill(impossible, 0.0)
    cross = both.exp().masked_fill(impossible, 0.0)
    own = alpha / total * (total * log_p).exp() + beta / total * (total * log_q).exp()
    return _scaled((own - cross).sum(-1) / (alpha * beta), temperature, scale_t2)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is between 0 and 1, not {value}")
    return value


# --- by name ----------------------------------------------------------------------------------------------------------

DIVERGENCES: Mapping[str, Callable[..., Tensor]] = {
    "ce_soft": ce_soft,
    "fkl": fkl,
    "rkl": rkl,
    "sym_kl": sym_kl,
    "sfkl": sfkl,
    "srkl": srkl,
    "jsd": jsd,
    "akl": akl,
    "tvd": tvd,
    "hellinger": hellinger,
    "ab": ab_divergence,
}


def divergence(name: str, **options: Any) -> Divergence:
    """The divergence of that name with its own options (``lam``, ``beta``, ``mu``, ``alpha``) bound.

    Raises ``UsageError`` for an unknown name.
    """
    if name not in DIVERGENCES:
        raise UsageError(f"no divergence is called {name!r}", hint=did_you_mean(name, sorted(DIVERGENCES)))
    return partial(DIVERGENCES[name], **options)
