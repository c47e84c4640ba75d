"""Environments of gymnasium, n of them side by side behind the interface of the track's own worlds.

Actions of boxes are scaled to [-1, 1]; of two discrete actions the sign decides. Observations are vectors, or the named
parts of a dictionary, one after the other. An exact reset goes through the seed and the actions since.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.tracks.policy.policies.base import Privileged
from kdbench.tracks.policy.worlds.base import Observation, World

if TYPE_CHECKING:
    from kdbench.tracks.policy.spec import GymWorld
    from kdbench.tracks.policy.task import PolicyTask

SUCCESS: dict[str, Callable[[np.ndarray, bool], bool]] = {
    "Pendulum-v1": lambda obs, ended: bool(obs[0] > 0.95 and abs(obs[2]) < 0.5),
    "CartPole-v1": lambda obs, ended: not ended,
}
"""Whether an episode that is over ended well, from its last observation and whether it was ended before its time, for
environments that do not say so themselves."""


class Gym(World):
    """n environments of one id."""

    def __init__(self, n: int, spec: GymWorld) -> None:
        """Raises ``JobError`` where the environment is not there or has other actions."""
        super().__init__(n, spec.steps)
        import gymnasium

        if spec.module:
            importlib.import_module(spec.module)
        options = {} if spec.obs_type is None else {"obs_type": spec.obs_type}
        try:
            self.envs = [gymnasium.make(spec.id, max_episode_steps=spec.steps, **options) for _ in range(n)]
        except gymnasium.error.Error as error:
            raise JobError(f"gymnasium cannot make {spec.id!r}: {error}") from error
        self.spec, space = spec, self.envs[0].action_space
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        if self.discrete and space.n != 2:
            raise JobError(f"{spec.id} has {space.n} discrete actions; two are understood")
        self.actions = 1 if self.discrete else int(np.prod(space.shape))  # type: ignore[misc]
        self.low, self.high = (0.0, 1.0) if self.discrete else (space.low.ravel(), space.high.ravel())
        if not np.isfinite(np.concatenate([np.ravel(self.low), np.ravel(self.high)])).all():
            raise JobError(f"the actions of {spec.id} have no bounds")

    def _flat(self, obs: Any) -> np.ndarray:
        parts = [obs[name] for name in self.spec.parts] if isinstance(obs, Mapping) else [obs]
        return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)

    def scaled(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the environment, in [-1, 1]."""
        return np.asarray(2 * (actions - self.low) / (self.high - self.low) - 1)

    def start(self, seed: int) -> dict[str, Any]:
        raise NotImplementedError("environments are started where they are, by reset")

    def reset(self, seeds: np.ndarray, where: np.ndarray | None = None) -> Observation:
        rows = np.arange(self.n) if where is None else np.flatnonzero(where)
        if len(seeds) != self.n:
            raise ValueError(f"{self.n} episodes need as many seeds, not {len(seeds)}")
        for row in rows:
            vector = self._flat(self.envs[row].reset(seed=int(seeds[row]))[0])
            if not self.state:
                self.state = {
                    "vector": np.zeros((self.n, len(vector)), dtype=np.float32),
                    "clock": np.zeros(self.n, dtype=np.int64),
                    "over": np.zeros(self.n, dtype=bool),
                    "won": np.zeros(self.n, dtype=bool),
                    "seed": np.zeros(self.n, dtype=np.int64),
                    "done": np.zeros((self.n, self.steps, self.actions)),
                }
            for name, value in {"vector": vector, "clock": 0, "over": False, "won": False, "seed": seeds[row]}.items():
                self.state[name][row] = value
        return self.observe()

    def move(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        reward, terminated, success = np.zeros(self.n), np.zeros(self.n, dtype=bool), np.zeros(self.n, dtype=bool)
        for row in np.flatnonzero(live):
            self.state["done"][row, self.state["clock"][row]] = actions[row]
            obs, reward[row], terminated[row], truncated, info = self.envs[row].step(self._native(actions[row]))
            self.state["vector"][row] = self._flat(obs)
            if "is_success" in info:
                success[row] = bool(info["is_success"])
            elif (terminated[row] or truncated) and self.spec.id in SUCCESS:
                success[row] = SUCCESS[self.spec.id](self.state["vector"][row], bool(terminated[row]))
        return reward, terminated, success, np.zeros(self.n, dtype=bool)

    def _native(self, action: np.ndarray) -> Any:
        if self.discrete:
            return int(action[0] > 0)
        space = self.envs[0].action_space
        native = self.low + (action + 1) / 2 * (self.high - self.low)
        return native.reshape(space.shape).astype(space.dtype)

    def observe(self) -> Observation:
        return Observation(torch.from_numpy(self.state["vector"].copy()))

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self.reset(state["seed"])
        for row in range(self.n):
            for number in range(int(state["clock"][row])):
                self.envs[row].step(self._native(state["done"][row, number]))
        super().load_state_dict(state)


# --- experts ----------------------------------------------------------------------------------------------------------


def pendulum(vector: np.ndarray) -> np.ndarray:
    """(n, 1) actions: energy shaping until the pendulum is near the top, then feedback (Åström and Furuta, 2000).

    Of gymnasium's Pendulum: mass and length 1, gravity 10, torque at most 2; observations are cos, sin and velocity.
    """
    angle, speed = np.arctan2(vector[:, 1], vector[:, 0]), vector[:, 2]
    energy = speed**2 / 6 + 5 * (vector[:, 0] - 1)  # 0 at rest at the top: I = 1/3, m g l / 2 = 5
    swing = np.where(np.abs(speed) < 1e-3, 2.0, -np.sign(speed * energy) * 2)
    hold = -(10 * angle + 2.5 * speed)
    torque = np.where(np.abs(angle) + 0.15 * np.abs(speed) < 0.7, hold, swing)
    return np.clip(torque / 2, -1, 1)[:, None]


def cartpole(vector: np.ndarray) -> np.ndarray:
    """(n, 1) actions: the sign of a linear feedback of position, velocity, angle and its rate."""
    return np.sign(vector @ np.array([0.1, 0.3, 1.0, 0.5]) + 1e-9)[:, None]


EXPERTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Pendulum-v1": pendulum, "CartPole-v1": cartpole}
"""Controllers by id: observations (n, O) to actions (n, A) in [-1, 1]."""


class GymExpert(Privileged):
    """The controller of an environment."""

    kind = "gym-expert"

    def __init__(self, name: str) -> None:
        """Raises ``JobError`` for an id without a controller."""
        if name not in EXPERTS:
            raise JobError(f"there is no scripted expert of {name!r}; there is one of {', '.join(sorted(EXPERTS))}")
        self.name = name

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept between steps."""

    def act(self, obs: Observation) -> Tensor:
        return torch.from_numpy(EXPERTS[self.name](obs.vector.cpu().numpy().astype(np.float64)).astype(np.float32))

    def save(self, folder: Path) -> None:
        (folder / "expert.txt").write_text(f"{self.name}\n")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> GymExpert:
        return cls((folder / "expert.txt").read_text().strip())
