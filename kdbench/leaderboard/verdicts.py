"""What paired values over seeds say about one claim: reproduced, not reproduced or undecided.

Pure functions; nothing here knows jobs, tasks or stores. A verdict needs an interval that lies wholly on one side of
what is claimed; everything else is undecided, with the reason in words.

Failed jobs: a seed on which either side failed is no pair, and what is left is a selection, so that nothing is
reproduced from it. Two things still follow. Where the subject diverged or overspent its budget on more than half of
the seeds on which the reference gave a value, and on two at least, the claim is not reproduced: that is a result of
the method and no accident of the machine. And where only the subject failed, its failures do not save it from an
interval that refutes the claim.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import ndtri

from kdbench.cards import Kind
from kdbench.leaderboard import statistics
from kdbench.leaderboard.power import POWER
from kdbench.leaderboard.statistics import LEVEL, Direction, Estimate, Values

Verdict = Literal["reproduced", "not reproduced", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "undecided")

OWN_DOING = ("diverged", "over_budget")
"""Status of jobs that the method itself ended."""
FEWEST_PAIRS = 2
"""Seeds that both sides need."""
MOST_SEEDS = 100
"""More are not recommended to anybody."""
_ROUNDING = 1e-9
"""Ends of intervals this close to what is claimed, as a fraction of the values, are at it."""


@dataclass(frozen=True)
class Side:
    """What a method left on a task, by seed."""

    name: str
    values: Mapping[int, float] = field(default_factory=dict)
    """Finite values."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """What the jobs came to that gave no value: their status."""
    constant: float | None = None
    """A number that stands for every seed, in place of a method."""

    @property
    def ran(self) -> bool:
        return self.constant is not None or bool(self.values or self.failed)


@dataclass(frozen=True)
class Judgement:
    """A verdict with its numbers."""

    verdict: Verdict
    n: int
    """Seeds on which both sides have a value."""
    effect: Estimate | None = None
    """Mean paired difference in the metric's direction (positive: the subject is better), or ratio of the means."""
    notes: tuple[str, ...] = ()
    """Why it is undecided, and what else a reader must know."""
    ran: bool = True
    """Whether there are jobs of both sides."""


def judge(
    kind: Kind, margin: float, subject: Side, reference: Side, direction: Direction, resolution: float = 0.0
) -> Judgement:
    """The verdict on one claim on one task.

    ``superior``: the mean paired difference over seeds, in the metric's ``direction``, is above ``margin``;
    ``noninferior``: it is at least -``margin``; both by its 95 % Student t interval. ``ratio``: mean(subject) /
    mean(reference) is at least ``margin`` (at most, where less is better), by Fieller's 95 % interval. ``resolution``
    is the least spread of differences (see :mod:`kdbench.leaderboard.statistics`).
    """
    failures = tuple(_failures(side) for side in (subject, reference) if side.failed)
    missing = [side.name for side in (subject, reference) if not side.ran]
    if missing:
        who = f"neither {missing[0]} nor {missing[1]} has" if len(missing) == 2 else f"{missing[0]} has not"
        return Judgement("undecided", 0, notes=(f"{who} run here", *failures), ran=False)
    a, b = _paired(subject, reference)
    n = int((np.isfinite(a) & np.isfinite(b)).sum())
    effect = _effect(kind, a, b, direction, resolution) if n else None
    overruled = _own_doing(subject, reference)
    if overruled:
        return Judgement("not reproduced", n, effect, (overruled,))
    if n < FEWEST_PAIRS:
        few = f"{n} seed{'s' * (n != 1)} with a value of both, {FEWEST_PAIRS} are needed"
        return Judgement("undecided", n, effect, (few, *failures))
    if effect is None:
        return Judgement("undecided", n, None, (f"the mean of {reference.name} is not clearly above 0", *failures))
    if effect.low is None or effect.high is None:
        same = f"{n} seeds that agree to the last digit are no test, {statistics.FEWEST_EQUAL} are needed"
        return Judgement("undecided", n, effect, (same, *failures))
    verdict = _by_interval(kind, margin, effect.low, effect.high, direction, _scale(a, b, kind))
    if verdict == "undecided":
        return Judgement(verdict, n, effect, (*failures, _wide(kind, margin, a, b, direction, resolution)))
    if failures and (verdict == "reproduced" or reference.failed):
        return Judgement("undecided", n, effect, (*failures, "the seeds that are left are a selection"))
    return Judgement(verdict, n, effect, failures)


def ratio_interval(a: Values, b: Values, resolution: float = 0.0, level: float = LEVEL) -> Estimate | None:
    """mean(a) / mean(b) of paired values (n,) with Fieller's interval (Fieller 1954): exact for normal pairs.

    It holds the ratios R that the paired t test of a - R b does not reject, of which the deviation is taken to be at
    least ``resolution``; so a claimed ratio is outside of it exactly where that test rejects it. Unlike the delta
    method's it is not symmetric. Without ends for a single pair, and where fewer than ``FEWEST_EQUAL`` pairs have the
    same ratio and the resolution is unknown. None where mean(b) is not significantly above 0. Raises ``ValueError``
    where the shapes differ or a value is not finite.
    """
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a ratio needs two equally long rows of finite values")
    n = len(a)
    if n == 0 or b.mean() <= 0:
        return None
    above, below = float(a.mean()), float(b.mean())
    ratio = above / below
    if n == 1:
        return Estimate(ratio, None, None, 1)
    factor = statistics.t_quantile(n, level) ** 2 / n
    (var_a, cov), (_, var_b) = np.cov(a, b, ddof=1)
    # the roots of (above - R below)^2 = factor var(a - R b), an upward parabola in R where below is clear of 0
    curvature = below**2 - factor * var_b
    if curvature <= 0 or below <= math.sqrt(factor) * resolution:
        return None
    middle = (above * below - factor * cov) / curvature
    constant = (above**2 - factor * var_a) / curvature
    half = math.sqrt(max(middle**2 - constant, 0.0))
    spread = float((a - ratio * b).std(ddof=1))
    if spread <= _ROUNDING * max(abs(above), below):  # what is left of it is rounding
        if resolution == 0 and n < statistics.FEWEST_EQUAL:
            return Estimate(ratio, None, None, n)
        middle, half = ratio, 0.0
    least = math.sqrt(factor) * resolution / below
    return Estimate(ratio, min(middle - half, ratio - least), max(middle + half, ratio + least), n)


def _paired(subject: Side, reference: Side) -> tuple[Values, Values]:
    """Values (seeds,) of both over the seeds of either, NaN where there is none."""
    seeds = sorted({*subject.values, *reference.values})

    def row(side: Side) -> Values:
        if side.constant is not None:
            return np.full(len(seeds), side.constant)
        return np.array([side.values.get(seed, math.nan) for seed in seeds])

    return row(subject), row(reference)


def _effect(kind: Kind, a: Values, b: Values, direction: Direction, resolution: float) -> Estimate | None:
    """The effect with its interval, without ends where there is no test; None where it is undefined."""
    if kind == "ratio":
        common = np.isfinite(a) & np.isfinite(b)
        return ratio_interval(a[common], b[common], resolution)
    sign = 1.0 if direction == "max" else -1.0
    found = statistics.paired_difference(sign * a, sign * b, resolution)
    equal = found.half is not None and found.half <= _ROUNDING * _scale(a, b, kind)
    return Estimate(found.mean, None, None, found.n) if equal and found.n < statistics.FEWEST_EQUAL else found


def _by_interval(kind: Kind, margin: float, low: float, high: float, direction: Direction, scale: float) -> Verdict:
    slack = _ROUNDING * scale
    if kind == "superior":
        holds, fails = low > margin + slack, high <= margin + slack
    elif kind == "noninferior":
        holds, fails = low >= -margin - slack, high < -margin - slack
    elif direction == "max":
        holds, fails = low >= margin - slack, high < margin - slack
    else:
        holds, fails = high <= margin + slack, low > margin + slack
    return "reproduced" if holds else "not reproduced" if fails else "undecided"


def _scale(a: Values, b: Values, kind: Kind) -> float:
    """What rounding errors of the effect are relative to."""
    return 1.0 if kind == "ratio" else float(np.nanmax(np.abs([a, b])))


def _own_doing(subject: Side, reference: Side) -> str:
    """Why the subject's own failures refute the claim; empty where they do not."""
    ended = {seed: status for seed, status in subject.failed.items() if status in OWN_DOING}
    seeds = [*subject.values, *subject.failed]
    if reference.constant is None:
        seeds = [seed for seed in seeds if seed in reference.values]
    lost = [ended[seed] for seed in seeds if seed in ended]
    if len(lost) < FEWEST_PAIRS or 2 * len(lost) <= len(seeds):
        return ""
    how = " or ".join(sorted({"diverged" if status == "diverged" else "overspent" for status in lost}))
    where = "that it ran" if reference.constant is not None else f"on which {reference.name} gave a value"
    return f"{subject.name} {how} on {len(lost)} of the {len(seeds)} seeds {where}"


def _failures(side: Side) -> str:
    counts = sorted(Counter(side.failed.values()).items())
    seeds = len(side.failed)
    what = ", ".join(f"{count} {status}" for status, count in counts)
    return f"{side.name} has no value of {seeds} seed{'s' * (seeds != 1)} ({what})"


def _wide(kind: Kind, margin: float, a: Values, b: Values, direction: Direction, resolution: float) -> str:
    """That the interval does not decide, and how many seeds would, if mean and spread are what they look like.

    By the normal approximation of the power of the t test with Guenther's correction (Guenther 1981), which is within
    a seed or two of :func:`kdbench.leaderboard.power.seeds_to_separate` and a thousand times faster.
    """
    sign = 1.0 if direction == "max" else -1.0
    if kind == "ratio":
        beyond = a - margin * b
    else:
        beyond = sign * (a - b) - (margin if kind == "superior" else -margin)
    kept = beyond[np.isfinite(beyond)]
    spread = max(float(kept.std(ddof=1)), resolution)
    size = abs(float(kept.mean())) / spread if spread else math.inf
    level, power = ndtri(0.5 + LEVEL / 2), ndtri(POWER)
    said = "the interval has values on both sides of the claim"
    if size * math.sqrt(MOST_SEEDS) < level + power:
        return f"{said}; if this is the effect, {MOST_SEEDS} seeds would not tell"
    needed = math.ceil(((level + power) / size) ** 2 + level**2 / 2)
    return said if needed <= len(kept) else f"{said}; if this is the effect, about {needed} seeds would tell"
