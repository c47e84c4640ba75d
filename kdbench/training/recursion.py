"""Recursive distillation on the simplex: what repeated anchoring to base teachers guarantees, and what is measured.

After Flouro and Chadwick (2026), arXiv 2601.13100, as we read its abstract. B is the base teacher, s_n the student of
generation n, q_{n+1} = M(B, s_n) the next target and g < 1 the weight of the student in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.training.simplex import MetaTeacher, history_anchor, kl, linear_mixture, normalise, total_variation


@dataclass(frozen=True)
class Recursion:
    """A chain of realizable students, s_{n+1} = q_{n+1}, from N starts at once."""

    divergences: Tensor
    """(generations + 1, N): KL(B || s_n)."""
    violation: float
    """Largest excess of KL(B || s_{n+1}) over g KL(B || s_n), and of KL(B || s_n) over g^n KL(B || s_0)."""

    def rate(self, smallest: float = 1e-12) -> float:
        """Factor per generation by which the mean divergence falls, fitted while it is above ``smallest``."""
        mean = self.divergences.mean(1)
        logs = mean[mean > smallest].log()
        if len(logs) < 2:
            return 0.0
        steps = torch.arange(len(logs), dtype=logs.dtype)
        steps = steps - steps.mean()
        return float(((steps * logs).sum() / steps.square().sum()).exp())


def exact_recursion(operator: MetaTeacher, base: Tensor, start: Tensor, gamma: float, generations: int) -> Recursion:
    """Iterate M on probabilities (N, C), float64.

    With the latest student alone, both inequalities hold for linear mixing, by convexity, and for geometric mixing,
    where KL(B || q) = g KL(B || s) + log Z and log Z <= 0. With a history of students the first one need not: the
    bound is then the mean divergence of the students that were mixed, of which the largest is taken here.
    """
    students, divergences, worst = [start], [kl(base, start)], 0.0
    history = operator is history_anchor
    for n in range(1, generations + 1):
        students.append(operator(base, students, gamma))
        before = torch.stack(divergences).amax(0) if history else divergences[-1]
        divergences.append(kl(base, students[-1]))
        bounds = [gamma * before] if history else [gamma * before, gamma**n * divergences[0]]
        worst = max([worst, *(float((divergences[-1] - bound).max()) for bound in bounds)])
    return Recursion(torch.stack(divergences), worst)


def sampled_recursion(
    base: Tensor, start: Tensor, gamma: float, generations: int, samples: int, generator: torch.Generator
) -> float:
    """Largest excess over the error floor, where each student is an empirical distribution of ``samples`` draws.

    TV(s_n, B) <= g^n TV(s_0, B) + e / (1 - g) for linear mixing, with e the largest TV(s_n, q_n) of the chain; every
    row of (N, C) is a chain of its own. 0 or less where it holds.
    """
    student, e, worst = start, torch.zeros(len(start), dtype=start.dtype), -float("inf")
    first = total_variation(start, base)
    for n in range(1, generations + 1):
        target = linear_mixture([base, student], [1 - gamma, gamma])
        drawn = torch.multinomial(target, samples, replacement=True, generator=generator)
        student = torch.zeros_like(target).scatter_add(1, drawn, torch.full_like(drawn, 1 / samples, dtype=start.dtype))
        e = torch.maximum(e, total_variation(student, target))
        worst = max(worst, float((total_variation(student, base) - gamma**n * first - e / (1 - gamma)).max()))
    return worst


def predicted_floor(gamma: float, first: float, errors: Sequence[float]) -> float:
    """Bound on TV(s_n, B): g^n ``first`` + sum_i g^(n - i) e_i, from each projection's own error e_i = TV(s_i, q_i)."""
    bound = first
    for error in errors:
        bound = gamma * bound + error
    return bound


def random_points(n: int, classes: int, generator: torch.Generator) -> Tensor:
    """(n, classes) float64, uniform on the simplex."""
    return normalise(-torch.rand(n, classes, generator=generator, dtype=torch.float64).clamp(min=1e-300).log())
