"""Weights that change over training, and averages that are logged along: callbacks for ``task.fit(on_step=...)``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from kdbench.training.loop import POINTS
from kdbench.training.state import Values

if TYPE_CHECKING:
    from kdbench.task import Task


class Ramp(Values):
    """A weight that rises linearly from near 0 to 1 over a first part of the steps, and stays there.

    ``value`` is what the current step uses: (step + 1) / (fraction * steps) at step 0, 1, ..., at most 1.
    """

    kept = ("value",)

    def __init__(self, steps: int, fraction: float) -> None:
        """``steps`` of the training in all, ``fraction`` in [0, 1) of them for the rise."""
        self.length = fraction * steps
        self(0)

    def __call__(self, step: int) -> None:
        """Called after optimizer step ``step`` (1-based)."""
        self.value = min(1.0, (step + 1) / self.length) if self.length > 0 else 1.0


class CosineRamp(Ramp):
    """As :class:`Ramp`, along half a cosine from exactly 0."""

    def __call__(self, step: int) -> None:
        done = min(1.0, step / self.length) if self.length > 0 else 1.0
        self.value = (1 - math.cos(math.pi * done)) / 2


class Watch(Values):
    """Means of named values that a loss sees, added to the job's curve at the same points as the losses."""

    kept = ("_sums", "_count")

    def __init__(self, task: Task, steps: int, prefix: str = "") -> None:
        self.task, self.every, self.steps, self.prefix = task, max(1, steps // POINTS), steps, prefix
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Scalar tensors of one batch; kept on their device until they are due."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def __call__(self, step: int) -> None:
        """Called after optimizer step ``step`` (1-based)."""
        if self._count and (step % self.every == 0 or step == self.steps):
            means = {self.prefix + name: total / self._count for name, total in self._sums.items()}
            self.task.log(step, **means)
            self._sums, self._count = {}, 0
