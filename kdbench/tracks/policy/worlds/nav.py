"""World ``nav``: a disc robot drives to a goal among discs, in one of four bodies.

The arena has 10 x 10 m; a large disc lies between start and goal, so that there is a way on its left and one on its
right. An action is (forward, sideways, turning), each in [-1, 1] of the robot's limits; a body uses its part of it:

* ``holonomic``: all three, at once;
* ``differential``: forward and turning;
* ``bicycle``: forward and turning, on circles of at least 0.6 m;
* ``legged``: all three, one step late, with a first-order lag of 0.3 s and slip N(0, 0.05) m/s.

Time runs in steps of 0.1 s. Reaching the goal (0.3 m) ends the episode well, touching a disc or a wall ends it badly.
The reward is the progress in metres, plus 5 at the goal, minus 5 for contact. An observation has the goal in the body's
frame (m), the velocity (m/s, m/s, rad/s) and 24 ranges around the body (of 5 m, in [0, 1]).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from kdbench.tracks.policy.worlds.base import Observation, World

ROBOTS = ("holonomic", "differential", "bicycle", "legged")
SIZE, RADIUS, REACH = 10.0, 0.2, 0.3
"""Metres: side of the arena, radius of the robot, distance at which the goal is reached."""
DT = 0.1
"""Seconds of a step."""
LIMITS = np.array([1.2, 1.2, 2.0])
"""m/s, m/s, rad/s."""
TURN = 0.6
"""Metres: smallest circle of the bicycle."""
LAG, SLIP = 0.3, 0.05
"""Of the legged robot: seconds, m/s."""
RAYS, RANGE = 24, 5.0
GAP = 0.95
"""Metres between two discs, and between discs and walls: the robot fits between, with a margin."""
MASKS = {
    "holonomic": (True, True, True),
    "differential": (True, False, True),
    "bicycle": (True, False, True),
    "legged": (True, True, True),
}
"""Which part of an action a body uses."""


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def turned(vectors: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Vectors (n, 2) turned by angles (n,)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * vectors[:, 0] - s * vectors[:, 1], s * vectors[:, 0] + c * vectors[:, 1]], -1)


class Nav(World):
    """n robots of one body, each in an arena of its own."""

    actions: ClassVar[int] = 3

    def __init__(
        self,
        n: int,
        *,
        robot: str = "holonomic",
        discs: tuple[int, int] = (6, 12),
        span: tuple[float, float] = (3.2, 4.0),
        sided: bool = True,
        steps: int = 120,
    ) -> None:
        """``discs``: least and most of them, the central one included; ``span``: metres from the middle to the ends;
        ``sided``: the expert goes around the central disc as the seed says, and not where the way is shorter."""
        super().__init__(n, steps)
        self.robot, self.discs, self.span, self.sided = robot, discs, span, sided
        self._angles = (np.arange(RAYS) * 2 * np.pi / RAYS).astype(np.float32)

    def start(self, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        middle, bearing = SIZE / 2, rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(bearing), np.sin(bearing)])
        across = np.array([-along[1], along[0]])
        begin = middle - rng.uniform(*self.span) * along + rng.uniform(-0.6, 0.6) * across
        goal = middle + rng.uniform(*self.span) * along + rng.uniform(-0.6, 0.6) * across
        discs = [(middle + rng.uniform(-0.2, 0.2), middle + rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.2))]
        wanted = int(rng.integers(self.discs[0], self.discs[1] + 1))
        radii = rng.uniform(0.25, 0.6, 120)
        spots = rng.uniform(GAP, SIZE - GAP, (120, 2))
        ends = np.minimum(np.hypot(*(spots - begin).T), np.hypot(*(spots - goal).T)) > radii + GAP
        walls = np.minimum(spots, SIZE - spots).min(1) > radii + GAP
        for spot, radius in zip(spots[ends & walls], radii[ends & walls], strict=True):
            if len(discs) == wanted:
                break
            if all(np.hypot(spot[0] - x, spot[1] - y) > radius + r + GAP for x, y, r in discs):
                discs.append((spot[0], spot[1], radius))
        table = np.full((self.discs[1], 3), (-1e3, -1e3, 0.0))
        table[: len(discs)] = discs
        heading = np.arctan2(*(goal - begin)[::-1]) + rng.normal(0, 0.3)
        return {
            "discs": table,
            "begin": begin,
            "goal": goal,
            "position": begin.copy(),
            "heading": float(wrapped(heading)),
            "velocity": np.zeros(3),
            "command": np.zeros(3),
            "side": int(rng.integers(2)),
            "slip": rng.normal(0, SLIP, (self.steps, 2)),
        }

    def _velocity(self, command: np.ndarray) -> np.ndarray:
        """(n, 3) velocity in the body's frame that a command (n, 3) brings about."""
        state = self.state
        if self.robot == "holonomic":
            return command
        if self.robot == "legged":
            rows, clock = np.arange(self.n), np.minimum(state["clock"], self.steps - 1)
            moved = state["velocity"] + DT / LAG * (state["command"] - state["velocity"])
            moved[:, :2] += state["slip"][rows, clock]
            return moved
        velocity = command * np.array([1.0, 0.0, 1.0])
        if self.robot == "bicycle":
            most = np.abs(velocity[:, 0]) / TURN
            velocity[:, 2] = np.clip(velocity[:, 2], -most, most)
        return velocity

    def move(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        state, command = self.state, actions * LIMITS
        velocity = self._velocity(command)
        before = np.hypot(*(state["goal"] - state["position"]).T)
        middle = state["heading"] + 0.5 * DT * velocity[:, 2]
        position = state["position"] + DT * turned(velocity[:, :2], middle)
        state["position"] = np.where(live[:, None], position, state["position"])
        state["heading"] = np.where(live, wrapped(state["heading"] + DT * velocity[:, 2]), state["heading"])
        state["velocity"] = np.where(live[:, None], velocity, state["velocity"])
        state["command"] = np.where(live[:, None], command, state["command"])
        after = np.hypot(*(state["goal"] - state["position"]).T)
        contact = self.clearance() < 0
        success = (after < REACH) & ~contact
        return before - after + 5.0 * success - 5.0 * contact, contact | success, success, contact

    def clearance(self) -> np.ndarray:
        """(n,) metres between the robot and what is nearest to it; below 0 in contact."""
        position, discs = self.state["position"], self.state["discs"]
        away = np.hypot(*np.moveaxis(discs[..., :2] - position[:, None], -1, 0)) - discs[..., 2]
        walls = np.minimum(position, SIZE - position).min(1)
        return np.asarray(np.minimum(away.min(1), walls) - RADIUS)

    def scan(self) -> np.ndarray:
        """(n, RAYS) ranges from the robot's centre to the first disc or wall, at most ``RANGE`` metres."""
        state = {name: self.state[name].astype(np.float32) for name in ("heading", "position", "discs")}
        angle = state["heading"][:, None] + self._angles
        c, s = np.cos(angle), np.sin(angle)
        rel = state["discs"][..., :2] - state["position"][:, None]
        x, y, radius = rel[..., 0, None], rel[..., 1, None], state["discs"][..., 2, None]
        ahead = x * c[:, None] + y * s[:, None]
        inside = radius**2 - (x * x + y * y - ahead**2)
        hit = (ahead > 0) & (inside > 0)
        ranges = np.where(hit, ahead - np.sqrt(np.where(hit, inside, np.float32(0))), np.float32(RANGE)).min(1)
        px, py = state["position"][:, 0, None], state["position"][:, 1, None]
        with np.errstate(divide="ignore"):
            wall_x = np.where(c > 0, SIZE - px, px) / np.abs(c)
            wall_y = np.where(s > 0, SIZE - py, py) / np.abs(s)
        return np.clip(np.minimum(ranges, np.minimum(wall_x, wall_y)), 0, RANGE)

    def observe(self) -> Observation:
        state = self.state
        goal = turned(state["goal"] - state["position"], -state["heading"])
        vector = np.concatenate([goal, state["velocity"], self.scan() / RANGE], 1)
        robot = torch.full((self.n,), ROBOTS.index(self.robot))
        return Observation(torch.from_numpy(vector.astype(np.float32)), robot=robot)


def passed_left(position: np.ndarray, length: int, begin: np.ndarray, goal: np.ndarray, centre: np.ndarray) -> bool:
    """Whether a track ``position`` (L, 2) of ``length`` points passed the disc at ``centre`` on its left.

    Told where it crosses the line through the centre, across the way from ``begin`` to ``goal``.
    """
    along = (goal - begin) / np.hypot(*(goal - begin))
    rel = position[:length] - centre
    row = int(np.abs(rel @ along).argmin())
    return bool(along[0] * rel[row, 1] - along[1] * rel[row, 0] > 0)
