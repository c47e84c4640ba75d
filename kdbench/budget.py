"""What a job may spend (limits) and what it spent (meters)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from kdbench.errors import OverBudget


class Budget:
    """Hard limits and meters of one job.

    ``limits`` are what the evaluated student may spend, the first being the primary unit (usually optimizer
    ``steps``). Everything else is a meter: recorded, shown beside the score, never limiting.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.limits: dict[str, float] = dict(limits)
        self.spent: dict[str, float] = defaultdict(float)

    @property
    def primary(self) -> str:
        """Unit of the first limit, ``steps`` where a task has none."""
        return next(iter(self.limits), "steps")

    def remaining(self, unit: str = "steps") -> float:
        """What is left of a unit; infinite where it has no limit."""
        return self.limits.get(unit, math.inf) - self.spent[unit]

    def steps(self, fraction: float = 1.0) -> int:
        """A share of the *whole* step limit, rounded down, at least 1: for methods that train in phases.

        Raises ``OverBudget`` where the task has no step limit.
        """
        if "steps" not in self.limits:
            raise OverBudget("this task has no limit on steps; pass steps= to task.fit")
        return max(1, int(self.limits["steps"] * fraction))

    def spend(self, unit: str, amount: float = 1) -> None:
        """Record that ``amount`` of ``unit`` is spent. Raises ``OverBudget`` past a hard limit."""
        total = self.spent[unit] + amount
        limit = self.limits.get(unit)
        if limit is not None and total > limit:
            raise OverBudget(
                f"{total:g} {unit} asked for, but the limit of this task is {limit:g}; "
                "train auxiliary networks with fit(..., spend='aux_steps'), which is metered instead"
            )
        self.spent[unit] = total

    def set(self, unit: str, value: float) -> None:
        """Record the absolute value of a meter, such as a number of parameters."""
        self.spent[unit] = value

    def restore(self, spent: Mapping[str, float]) -> None:
        """Put back what was spent when a checkpoint was written."""
        self.spent.clear()
        self.spent.update(spent)

    def report(self) -> dict[str, float]:
        """Every meter that was used, by name."""
        return {unit: float(value) for unit, value in sorted(self.spent.items())}
