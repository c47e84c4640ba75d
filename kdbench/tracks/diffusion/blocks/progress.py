"""How good a generator is while it trains: validated at a few updates, which are the same for methods to compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.training.state import Values

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

FILE = "progress.json"
"""Artifact that training leaves for ``evaluate``."""
POINTS = 8


def early_updates(task: DiffusionTask, ratio: int, points: int = POINTS) -> list[int]:
    """Updates of the generator, evenly over the first half of as many as the whole budget allows with ``ratio``."""
    half = task.spec.limits["steps"] / (ratio + 1) / 2
    return sorted({max(1, round(half * (number + 1) / points)) for number in range(points)})


class Progress(Values):
    """Validates a sampler after some updates: the ``on_step`` of a training, and part of its ``state``."""

    kept = ("points",)

    def __init__(self, task: DiffusionTask, sampler: Sampler, updates: Sequence[int]) -> None:
        """``sampler`` holds the network that is trained, as it is at the time."""
        self.task, self.sampler, self.updates = task, sampler, frozenset(updates)
        self.points: list[dict[str, float]] = []

    def __call__(self, step: int) -> None:
        if step not in self.updates:
            return
        values = self.task.validate(self.sampler)
        self.points.append({"update": step, "steps": self.task.budget.spent.get("steps", 0), **values})
        self.task.log(step, **{f"val/{name}": value for name, value in values.items()})

    def leave(self) -> None:
        """Write the points to an artifact, for :func:`early`."""
        self.task.artifact(FILE).write_text(json.dumps(self.points, indent=1) + "\n")


def early(task: DiffusionTask, *names: str) -> dict[str, float]:
    """``early_<name>``: means over the points that a :class:`Progress` has left, of the headline and of ``names``."""
    points = json.loads(task.artifact(FILE).read_text())
    wanted = [task.spec.headline.name, *names]
    return {
        f"early_{name}": sum(point[name] for point in points) / len(points)
        for name in wanted
        if points and all(name in point for point in points)
    }
