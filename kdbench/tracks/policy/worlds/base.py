"""Simulators of continuous worlds: a batch of episodes in numpy, each with its own seed and its own noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


@dataclass
class Observation:
    """What policies see of n episodes; parts that a world has not are None."""

    vector: Tensor
    """(n, O) float32; (n, 0) where pictures are all that is seen."""
    image: Tensor | None = None
    """(n, 3, H, W) float32 in [0, 1]."""
    text: Tensor | None = None
    """(n, L) int64 words of a sentence, 0 after its end."""
    robot: Tensor | None = None
    """(n,) int64: which robot is driven."""

    def __len__(self) -> int:
        return len(self.vector)

    def map(self, function: Any) -> Observation:
        """The function of each part that is there."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return Observation(**{name: None if value is None else function(value) for name, value in parts.items()})

    def rows(self, index: Any) -> Observation:
        """Some of the episodes."""
        return self.map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Observation:
        return self.map(lambda value: value.to(device))


@dataclass
class Step:
    """What came of one step of n episodes."""

    obs: Observation
    reward: np.ndarray
    """(n,) float64; 0 for episodes that were over."""
    terminated: np.ndarray
    """(n,) bool: the episode is over, and no reward would follow."""
    truncated: np.ndarray
    """(n,) bool: the time limit is reached, though the process would go on."""
    success: np.ndarray
    """(n,) bool: the episode has ended well by now."""
    contact: np.ndarray
    """(n,) bool: something was touched that should not be."""

    @property
    def done(self) -> np.ndarray:
        """(n,) bool: terminated or truncated."""
        return self.terminated | self.truncated


class World(ABC):
    """n episodes at a time. One seed decides one episode, its layout and all its noise, whatever else is in the batch.

    Actions are float arrays (n, A) in [-1, 1]; what is outside is clipped. Episodes that are over stay as they are,
    with reward 0, until they are reset.
    """

    actions: ClassVar[int]
    """A."""

    def __init__(self, n: int, steps: int) -> None:
        """``n`` episodes of at most ``steps`` steps."""
        self.n, self.steps = n, steps
        self.state: dict[str, np.ndarray] = {}
        """Everything that changes, by name; the first dimension is the episode."""
        self.meter: Callable[[int], None] | None = None
        """Told how many live rows every step has."""

    @abstractmethod
    def start(self, seed: int) -> dict[str, Any]:
        """The state of one new episode, by the names of :attr:`state`."""

    @abstractmethod
    def move(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Advance the ``live`` (n,) rows of the state; reward, terminated, success and contact, each (n,)."""

    @abstractmethod
    def observe(self) -> Observation:
        """What is seen now."""

    def reset(self, seeds: np.ndarray, where: np.ndarray | None = None) -> Observation:
        """New episodes, in all rows or those of ``where`` (n,) bool; ``seeds`` (n,) int64."""
        rows = np.arange(self.n) if where is None else np.flatnonzero(where)
        if len(seeds) != self.n:
            raise ValueError(f"{self.n} episodes need as many seeds, not {len(seeds)}")
        for row in rows:
            new = {"clock": 0, "over": False, "won": False, **self.start(int(seeds[row]))}
            for name, value in new.items():
                value = np.asarray(value)
                if name not in self.state:
                    self.state[name] = np.zeros((self.n, *value.shape), dtype=value.dtype)
                self.state[name][row] = value
        return self.observe()

    def step(self, actions: np.ndarray | Tensor) -> Step:
        """One step of all episodes that are not over."""
        given = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        if given.shape != (self.n, self.actions):
            raise ValueError(f"actions are ({self.n}, {self.actions}), not {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError("an action is not finite")
        live = ~self.state["over"]
        if self.meter is not None:
            self.meter(int(live.sum()))
        reward, terminated, success, contact = self.move(np.clip(given.astype(np.float64), -1, 1), live)
        self.state["clock"] += live
        terminated = terminated & live
        truncated = live & ~terminated & (self.state["clock"] >= self.steps)
        self.state["won"] |= success & live
        self.state["over"] |= terminated | truncated
        return Step(
            self.observe(), np.where(live, reward, 0.0), terminated, truncated, self.state["won"].copy(), contact & live
        )

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of everything that changes."""
        return {name: value.copy() for name, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go back to a state of :meth:`state_dict`, exactly."""
        self.state = {name: np.array(value) for name, value in state.items()}
