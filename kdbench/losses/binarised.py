"""Divergences of two log-likelihoods of one outcome against all others (Minixhofer et al. 2025, ALM, section 3).

Every function takes log-likelihoods (C,) of a teacher and of a student, at most 0, and a temperature ``tau``, and
returns (C,). With a and b the two over ``tau``, less a small constant that keeps log(1 - e^b) finite, outcome and
complement have the probabilities e^a and 1 - e^a, e^b and 1 - e^b. Gradients flow through the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EPS = 1e-6


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without cancellation (Mächler 2012); x is clamped to -1e-6: gradients stay finite."""
    x = x.clamp(max=-EPS)
    near = x > -0.6931471805599453
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(x)))


def _pair(teacher: Tensor, student: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    return teacher.detach() / tau - EPS, student / tau - EPS


def binary_ce(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """``-(e^a b + (1 - e^a) log(1 - e^b))``: forward KL and the teacher's entropy."""
    a, b = _pair(teacher, student, tau)
    return -(a.exp() * b - torch.expm1(a) * log1mexp(b))


def reverse_binary_kl(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """``e^b (b - a) + (1 - e^b) (log(1 - e^b) - log(1 - e^a))``."""
    a, b = _pair(teacher, student, tau)
    return b.exp() * (b - a) - torch.expm1(b) * (log1mexp(b) - log1mexp(a))


def temperature_limit(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """Limit for tau to infinity of tau times the forward KL: ``a - b + a log(b / a)`` at tau = 1, whatever ``tau``."""
    a, b = _pair(teacher, student, 1.0)
    return (a - b) + a * (torch.log(-b) - torch.log(-a))


def absolute(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """``|a - b|``."""
    a, b = _pair(teacher, student, tau)
    return (a - b).abs()


BINARISED: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "binary_ce": binary_ce,
    "reverse_binary_kl": reverse_binary_kl,
    "temperature_limit": temperature_limit,
    "abs": absolute,
}
