"""Operators on the probability simplex, and checks of the axioms that they are to satisfy.

Softening operators S_T and teachers that are made of other distributions are the subject of Flouro and Chadwick (2026),
arXiv 2601.03195 and 2601.13100; the operators, axioms and tolerances here are our reading of the abstracts. All
functions take probabilities (..., C) that sum to 1 and keep their precision; checks are meant for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

Operator: TypeAlias = Callable[[Tensor, float], Tensor]
"""(probabilities (..., C), temperature >= 1) -> probabilities (..., C)."""
MetaTeacher: TypeAlias = Callable[[Tensor, Sequence[Tensor], float], Tensor]
"""(base teacher, students of all generations so far, weight of the students in [0, 1]) -> the next target."""


def normalise(values: Tensor) -> Tensor:
    """Non-negative values (..., C) divided by their sum."""
    return values / values.sum(-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, (..., C) to (...); 0 log 0 is 0."""
    pointwise: Tensor = torch.special.xlogy(p, p) - torch.special.xlogy(p, q)
    return pointwise.sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half of the L1 distance, (..., C) to (...)."""
    return (p - q).abs().sum(-1) / 2


def entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats, (..., C) to (...)."""
    pointwise: Tensor = torch.special.entr(p)
    return pointwise.sum(-1)


# --- softening --------------------------------------------------------------------------------------------------------


def power(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised: the escort distribution, softmax(z / T) of the logits z."""
    return torch.softmax(p.log() / temperature, -1)


def uniform_mixing(p: Tensor, temperature: float) -> Tensor:
    """p / T + (1 - 1/T) / C."""
    return p / temperature + (1 - 1 / temperature) / p.shape[-1]


def log1p(p: Tensor, temperature: float) -> Tensor:
    """log(1 + (T - 1) p), normalised; p itself at T = 1. Uniform in the limit, but only as fast as 1 / log T."""
    return p if temperature == 1 else normalise(torch.log1p((temperature - 1) * p))


SOFTENING: dict[str, Operator] = {"power": power, "uniform": uniform_mixing, "log1p": log1p}


def spike(p: Tensor, temperature: float) -> Tensor:
    """All mass on the largest probability: no softening operator, for the checks to find."""
    return torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).to(p)


def permutation(p: Tensor, temperature: float) -> Tensor:
    """Power softening with the classes shifted by one: no softening operator either."""
    return power(p, temperature).roll(1, -1)


VIOLATORS: dict[str, Operator] = {"spike": spike, "permutation": permutation}


def matched_temperature(operator: Operator, p: Tensor, wanted: float, highest: float = 1e6) -> float:
    """Temperature at which the mean entropy of the softened ``p`` (N, C) is ``wanted`` nats, in [1, ``highest``].

    At the ends of that range where the entropy is out of reach.
    """
    p = p.double()

    def gap(log_temperature: float) -> float:
        return float(entropy(operator(p, float(torch.tensor(log_temperature).exp()))).mean()) - wanted

    top = float(torch.tensor(highest).log())
    if gap(0.0) >= 0:
        return 1.0
    if gap(top) <= 0:
        return highest
    return float(torch.tensor(brentq(gap, 0.0, top, xtol=1e-9), dtype=torch.float64).exp())


# --- partial access ---------------------------------------------------------------------------------------------------


def top_k(p: Tensor, k: int) -> Tensor:
    """The k largest probabilities, and the rest of the mass in equal parts on the other classes."""
    classes = p.shape[-1]
    if k >= classes:
        return p
    index = p.topk(k, -1).indices
    kept = torch.zeros_like(p).scatter(-1, index, p.gather(-1, index))
    others = torch.ones_like(p).scatter(-1, index, 0.0)
    return kept + others * (1 - kept.sum(-1, keepdim=True)) / (classes - k)


def noised(p: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise on every probability, cut at 0 and normalised: what a private teacher answers."""
    noise = torch.randn(p.shape, generator=generator).to(p)
    return normalise((p + scale * noise).clamp(min=1e-12))


# --- axioms of softening ----------------------------------------------------------------------------------------------

TEMPERATURES = (1.0, 1.5, 2.0, 4.0, 10.0, 100.0)


def _ranking(operator: Operator, p: Tensor) -> float:
    """Largest failure of p_i > p_j => S(p)_i > S(p)_j: how far a pair is from being in order."""
    order = p.sort(-1)
    clear = order.values.diff(dim=-1) > 1e-6
    worst = 0.0
    for temperature in TEMPERATURES:
        gaps = operator(p, temperature).gather(-1, order.indices).diff(dim=-1)[clear]
        if bool((gaps <= 0).any()):
            worst = max(worst, float((-gaps).max()), 1.0)
    return worst


def _continuity(operator: Operator, p: Tensor, step: float = 1e-9) -> float:
    """Largest change of S when p crosses a tie of its two largest classes by a tiny step."""
    top = p.topk(2, -1)
    tied = p.scatter(-1, top.indices, top.values.mean(-1, keepdim=True).expand_as(top.values))
    shift = torch.zeros_like(p).scatter(-1, top.indices, torch.tensor([step, -step]).to(p).expand_as(top.values))
    return max(float(total_variation(operator(tied + shift, t), operator(tied - shift, t)).max()) for t in TEMPERATURES)


def softening_violations(operator: Operator, p: Tensor) -> dict[str, float]:
    """How far an operator is from each axiom on interior points (N, C) of the simplex, float64; 0 where it holds.

    ``valid``: a distribution; ``ranking``: strict order is kept; ``continuity``; ``entropy``: it never falls as T
    rises; ``identity`` at T = 1; ``uniform``: distance to uniform at T = 1e300, less what a logarithm needs.
    """
    softened = [operator(p, t) for t in TEMPERATURES]
    entropies = torch.stack([entropy(each) for each in softened])
    flat = torch.full_like(p, 1 / p.shape[-1])
    return {
        "valid": max(max(float((s.sum(-1) - 1).abs().max()), float(-s.min())) for s in softened),
        "ranking": _ranking(operator, p),
        "continuity": _continuity(operator, p),
        "entropy": float((-entropies.diff(dim=0)).max().clamp(min=0)),
        "identity": float((operator(p, 1.0) - p).abs().max()),
        "uniform": max(0.0, float(total_variation(operator(p, 1e300), flat).max()) - 0.02),
    }


TOLERANCE = {"valid": 1e-12, "ranking": 0.0, "continuity": 1e-6, "entropy": 1e-12, "identity": 1e-12, "uniform": 0.0}


def satisfied(violations: dict[str, float]) -> dict[str, bool]:
    """Which axioms of :func:`softening_violations` hold."""
    return {name: value <= TOLERANCE[name] for name, value in violations.items()}


def axiom_matrix(generator: torch.Generator, points: int = 200, classes: int = 10) -> dict[str, dict[str, bool]]:
    """Which axioms hold for each operator and each planted violator, on uniformly random points of the simplex."""
    p = normalise(-torch.rand(points, classes, generator=generator, dtype=torch.float64).log())
    known = SOFTENING | VIOLATORS
    return {name: satisfied(softening_violations(operator, p)) for name, operator in known.items()}


# --- equivalence of temperatures --------------------------------------------------------------------------------------


def linear_fit(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (C, d), centred over the classes, of the linear softmax student that fits probabilities (N, C) to (N, d).

    By cross-entropy to its minimum.
    """
    n, classes, d = len(x), target.shape[1], x.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ flat.reshape(classes, d).T
        shift = z.max(1, keepdims=True)
        total = np.log(np.exp(z - shift).sum(1, keepdims=True)) + shift
        return float((target * (total - z)).sum() / n), ((np.exp(z - total) - target).T @ x / n).ravel()

    found = minimize(objective, np.zeros(classes * d), jac=True, method="BFGS", options={"gtol": 1e-10})
    weights = np.asarray(found.x).reshape(classes, d)
    return np.asarray(weights - weights.mean(0))


def temperature_equivalence(
    rng: np.random.Generator, t1: float = 1.0, t2: float = 3.0, n: int = 80, d: int = 3, classes: int = 4
) -> tuple[float, float]:
    """Largest deviation of W_T2 from W_T1 T1 / T2 for power-softened targets that a linear softmax student can realize.

    And the mean share of inputs on which fits to two operators' targets at T2 predict the same class: other operators
    keep the order of the target's classes, but not a linear student's predictor.
    """
    x = rng.normal(size=(n, d))
    p = torch.from_numpy(x @ rng.normal(size=(d, classes))).softmax(-1)
    one, two = (linear_fit(x, power(p, t).numpy()) for t in (t1, t2))
    fits = [linear_fit(x, operator(p, t2).numpy()) for operator in SOFTENING.values()]
    decisions = [(x @ each.T).argmax(1) for each in fits]
    alike = [float((a == b).mean()) for a, b in combinations(decisions, 2)]
    return float(np.abs(two - one * t1 / t2).max()), float(np.mean(alike))


# --- teachers of teachers ---------------------------------------------------------------------------------------------


def linear_mixture(parts: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted arithmetic mean; equal weights by default, others are normalised."""
    made = [1.0] * len(parts) if weights is None else weights
    return torch.stack([w / sum(made) * part for w, part in zip(made, parts, strict=True)]).sum(0)


def geometric_mixture(parts: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted geometric mean, normalised; all parts are positive."""
    made = [1.0] * len(parts) if weights is None else weights
    logs = [w / sum(made) * part.log() for w, part in zip(made, parts, strict=True)]
    return torch.softmax(torch.stack(logs).sum(0), -1)


AGGREGATES = {"linear": linear_mixture, "geometric": geometric_mixture}


def linear_anchor(base: Tensor, students: Sequence[Tensor], gamma: float) -> Tensor:
    """(1 - gamma) B + gamma s of the latest student."""
    return (1 - gamma) * base + gamma * students[-1]


def geometric_anchor(base: Tensor, students: Sequence[Tensor], gamma: float) -> Tensor:
    """B^(1 - gamma) s^gamma, normalised, of the latest student."""
    return geometric_mixture([base, students[-1]], [1 - gamma, gamma])


def history_anchor(base: Tensor, students: Sequence[Tensor], gamma: float, decay: float = 0.5) -> Tensor:
    """(1 - gamma) B + gamma times a mean of all students, each weighing ``decay`` times the one after it."""
    weights = [decay ** (len(students) - 1 - i) for i in range(len(students))]
    return (1 - gamma) * base + gamma * linear_mixture(students, weights)


META_TEACHERS: dict[str, MetaTeacher] = {
    "linear": linear_anchor,
    "geometric": geometric_anchor,
    "history": history_anchor,
}


def meta_violations(operator: MetaTeacher, base: Tensor, student: Tensor) -> dict[str, float]:
    """How far an operator is from each axiom for pairs (N, C) of base teacher and student, float64; 0 where it holds.

    ``valid``: a distribution; ``anchoring``: M(B, B) = B; ``continuity``: the change for a change of the student by
    1e-9, beyond 1e-6; ``monotone``: KL(B || M) never falls as the student's weight rises; ``ranking``: where B and s
    order two classes alike, M does.
    """
    grid = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    made = [operator(base, [student], gamma) for gamma in grid]
    moved = normalise(student + 1e-9 * student.roll(1, -1))
    changes = [float(total_variation(operator(base, [moved], g), m).max()) for g, m in zip(grid, made, strict=True)]
    divergences = torch.stack([kl(base, each) for each in made])

    def signs(p: Tensor) -> Tensor:
        return (p.unsqueeze(-1) - p.unsqueeze(-2)).sign()

    agree = signs(base) == signs(student)
    wrong = [float(((signs(each) != signs(base)) & agree).any()) for each in made]
    return {
        "valid": max(max(float((m.sum(-1) - 1).abs().max()), float(-m.min())) for m in made),
        "anchoring": max(float((operator(base, [base], g) - base).abs().max()) for g in grid),
        "continuity": max(0.0, max(changes) - 1e-6),
        "monotone": float((-divergences.diff(dim=0)).max().clamp(min=0)),
        "ranking": max(wrong),
    }
