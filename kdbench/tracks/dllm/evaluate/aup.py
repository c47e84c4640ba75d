"""Area under the curve of accuracy and parallelism (AUP): one number for how much is written at once, and how well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

CUT = 5.0
"""Percentage points below the first point at which a point does not count any more."""
SHARPNESS = 3.0


def weight(accuracy: float, best: float) -> float:
    """min(exp(-3 (1 - y / y_max)), 1), of accuracies in percent; 0 where nobody is ever right.

    >>> weight(80, 80), round(weight(40, 80), 4)
    (1.0, 0.2231)
    """
    return 0.0 if best <= 0 else min(math.exp(-SHARPNESS * (1 - accuracy / best)), 1.0)


def counted(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (tokens per forward, accuracy in percent) by parallelism, without those far below the first.

    Of points with the same parallelism the better one stays.
    """
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    kept = [point for place, point in enumerate(ordered) if place == 0 or point[0] > ordered[place - 1][0]]
    return [point for point in kept if point[1] >= kept[0][1] - CUT]


def aup(points: Sequence[tuple[float, float]], best: float) -> float:
    """AUP = rho_1 y_1 + sum over i of (rho_i - rho_(i-1)) (y_i W(y_i) + y_(i-1) W(y_(i-1))) / 2.

    ``points`` are (tokens per forward rho, accuracy y in percent), ``best`` is y_max, the best accuracy that anybody
    reaches on the problems. Points more than 5 percentage points below the first are left out wherever they are; the
    curve ends with the last that is left, and nothing is read off between it and one that is not. So a curve whose last
    point is far below the first is defined, too, and one of a single point is rho_1 y_1. Raises ``ValueError`` without
    points.

    >>> aup([(1, 80), (3, 80)], best=80), aup([(1, 80), (3, 70)], best=80)
    (240.0, 80.0)
    """
    if not points:
        raise ValueError("a curve needs a point")
    kept = counted(points)
    area = kept[0][0] * kept[0][1]
    for (before, low), (after, high) in pairwise(kept):
        area += 0.5 * (after - before) * (high * weight(high, best) + low * weight(low, best))
    return area
