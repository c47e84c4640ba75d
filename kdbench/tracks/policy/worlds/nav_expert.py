"""The scripted driver of world ``nav``: the shortest way, on a given side or on either, and pure pursuit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.policy.policies.base import Privileged
from kdbench.tracks.policy.worlds.nav import LIMITS, RADIUS, SIZE, TURN, Nav, turned, wrapped
from kdbench.tracks.policy.worlds.planning import SPACING, centres, way

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask
    from kdbench.tracks.policy.worlds.base import Observation

MARGIN = 0.15
"""Metres that ways keep from discs and walls, beside the robot's radius."""
AHEAD = {"holonomic": 0.5, "differential": 0.5, "bicycle": 0.7, "legged": 0.6}
"""Metres from the nearest point of the way to the one that is steered to."""
SPEED = {"holonomic": 1.0, "differential": 1.0, "bicycle": 0.9, "legged": 0.7}
"""Of the robot's limit."""
LOST = 0.8
"""Metres from the way at which a new one is looked for."""


def free_cells(discs: np.ndarray, block: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """(C,) cells that the robot's centre may be in. ``block``: where a wall begins, and its direction."""
    cells = centres(SIZE)
    away = np.hypot(*np.moveaxis(discs[None, :, :2] - cells[:, None], -1, 0)) - discs[None, :, 2]
    walls = np.minimum(cells, SIZE - cells).min(1)
    free = np.asarray(np.minimum(away.min(1), walls) > RADIUS + MARGIN)
    if block is not None:
        point, direction = block
        rel = cells - point
        beyond, beside = rel @ direction, rel @ np.array([-direction[1], direction[0]])
        free &= ~((beyond > 0) & (np.abs(beside) < 0.25))
    return free


class NavExpert(Privileged):
    """Drives every row along the way of its side; a row that was led far from it takes the shortest way from there."""

    kind = "nav-expert"

    def reset(self, n: int, generator: torch.Generator) -> None:
        world = self.world
        assert isinstance(world, Nav)
        self._ways: list[np.ndarray] = [np.empty((0, 2))] * n
        self._at = np.zeros(n, dtype=np.int64)
        for row in range(n):
            self.plan(row, sided=world.sided)

    def plan(self, row: int, *, sided: bool) -> None:
        """Look for a way of one episode from where it is, on its side or on either."""
        state = self.world.state
        here, goal, discs = state["position"][row], state["goal"][row], state["discs"][row]
        block = None
        if sided:
            along = (goal - here) / max(np.hypot(*(goal - here)), 1e-9)
            left = np.array([-along[1], along[0]])
            block = (discs[0, :2], -left if state["side"][row] else left)
        found = way(here, goal, free_cells(discs, block), SIZE)
        if found is None and sided:
            return self.plan(row, sided=False)
        self._ways[row] = np.stack([here, goal]) if found is None else found
        self._at[row] = 0
        return None

    def act(self, obs: Observation) -> Tensor:
        world, robot = self.world, self.world.robot  # type: ignore[attr-defined]
        state, actions = world.state, np.zeros((world.n, 3))
        targets = np.array([self._target(row, AHEAD[robot]) for row in range(world.n)])
        rel = turned(targets - state["position"], -state["heading"])
        error = np.arctan2(rel[:, 1], rel[:, 0])
        near = np.hypot(*(state["goal"] - state["position"]).T)
        speed = SPEED[robot] * np.clip(near / 0.5, 0.4, 1.0)
        if robot in ("holonomic", "legged"):
            actions[:, :2] = speed[:, None] * rel / np.maximum(np.hypot(*rel.T), 1e-9)[:, None]
            actions[:, 2] = np.clip(1.5 * wrapped(error) / LIMITS[2], -0.6, 0.6)
        elif robot == "differential":
            actions[:, 0] = speed * np.clip(np.cos(error), 0.0, 1.0)
            actions[:, 2] = np.clip(3.0 * error / LIMITS[2], -1, 1)
        else:
            distance = np.maximum(np.hypot(*rel.T), 0.2)
            bend = np.where(np.abs(error) < np.pi / 2, 2 * np.sin(error) / distance, np.sign(error) / TURN)
            actions[:, 0] = speed * np.where(np.abs(error) < np.pi / 2, 1.0, 0.6)
            actions[:, 2] = np.clip(bend * actions[:, 0] * LIMITS[0] / LIMITS[2], -1, 1)
        return torch.from_numpy(actions.astype(np.float32))

    def _target(self, row: int, ahead: float) -> np.ndarray:
        """The point of the way that a row steers to."""
        if self.world.state["over"][row]:
            return self._ways[row][-1]
        here = self.world.state["position"][row]
        part = self._ways[row][self._at[row] : self._at[row] + 40]
        away = np.hypot(*(part - here).T)
        if away.min() > LOST:
            self.plan(row, sided=False)
            part = self._ways[row][:40]
            away = np.hypot(*(part - here).T)
        self._at[row] += int(away.argmin())
        line = self._ways[row]
        return np.asarray(line[min(self._at[row] + int(ahead / SPACING), len(line) - 1)])

    def save(self, folder: Path) -> None:
        (folder / "expert.txt").write_text("the scripted driver of world nav; it has no parameters\n")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> NavExpert:
        return cls()
