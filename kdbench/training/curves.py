"""What the curves of a training say: where one turns, what going on has cost, and the power law that it begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def turning_point(losses: Sequence[float]) -> int:
    """Position of the least of (P,) values, the last of equal ones; the last position where nothing turned.

    >>> turning_point([3.0, 1.0, 2.0])
    1
    """
    return len(losses) - 1 - int(np.argmin(np.asarray(losses)[::-1]))


def setback(losses: Sequence[float]) -> float:
    """The last of (P,) values minus the least, at least 0: what was lost by going on. In the values' unit.

    >>> setback([3.0, 1.0, 2.0])
    1.0
    """
    return float(losses[-1] - min(losses))


def rise_while_falling(losses: Sequence[float], proxy: Sequence[float]) -> float:
    """The setback of ``losses`` (P,) where the ``proxy`` (P,) has fallen since their turning point, else 0.

    Goodhart's law: what is optimised gets better, what it stands for gets worse.
    """
    return setback(losses) if proxy[-1] < proxy[turning_point(losses)] else 0.0


def power_law(steps: Sequence[float], values: Sequence[float], early: float = 0.5) -> dict[str, float]:
    """``log value = a - b log step``, by least squares over the first ``early`` share of the points (at least 3).

    ``steps`` and ``values`` (P,), positive. Gives ``exponent`` b, ``r2`` of the fit on the points that it was made
    from, and ``deviation``: the mean residual of all later ones in log units, positive where the values fall slower
    than the law says, 0 where there are none. Raises ``ValueError`` for fewer than three points.
    """
    if len(steps) < 3:
        raise ValueError(f"a power law needs three points or more, not {len(steps)}")
    x = np.log(np.asarray(steps, dtype=float))
    y = np.log(np.maximum(np.asarray(values, dtype=float), 1e-12))
    fitted = max(3, math.ceil(early * len(x)))
    slope, level = np.polyfit(x[:fitted], y[:fitted], 1)
    residual = y - (level + slope * x)
    spread = float(((y[:fitted] - y[:fitted].mean()) ** 2).sum())
    r2 = 1.0 - float((residual[:fitted] ** 2).sum()) / spread if spread > 0 else 1.0
    late = residual[fitted:]
    return {"exponent": float(-slope), "r2": r2, "deviation": float(late.mean()) if len(late) else 0.0}
