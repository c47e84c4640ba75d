"""Logged episodes of tabular processes: all that an offline method sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.policy.worlds.tabular import Trajectories
from kdbench.training.loaders import Order


@dataclass(frozen=True)
class Logged:
    """One problem, as its data show it."""

    states: int
    actions: int
    horizon: int
    data: Trajectories

    @property
    def rewards(self) -> np.ndarray:
        """(K,) distinct returns in the data, rising."""
        return np.unique(self.data.returns)

    def first(self, rows: np.ndarray) -> Logged:
        """The problem with the episodes ``rows`` alone."""
        parts = {name: getattr(self.data, name)[rows] for name in vars(self.data)}
        return Logged(self.states, self.actions, self.horizon, Trajectories(**parts))


@dataclass
class LoggedBatch:
    """Episodes of every problem, as tensors."""

    states: list[Tensor]
    """(B, H) int64, one tensor a problem."""
    actions: list[Tensor]
    """(B, H) int64."""
    returns: list[Tensor]
    """(B,) float32."""
    mask: list[Tensor]
    """(B, H) bool: steps that were made."""

    def __len__(self) -> int:
        return len(self.states[0])


class LoggedLoader:
    """Batches of episodes in a new random order each epoch; the same rows of every problem."""

    def __init__(
        self, problems: Sequence[Logged], size: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> None:
        self.parts = [
            (
                torch.as_tensor(one.data.states, device=device),
                torch.as_tensor(one.data.actions, device=device),
                torch.as_tensor(one.data.returns, dtype=torch.float32, device=device),
                torch.as_tensor(one.data.mask, device=device),
            )
            for one in problems
        ]
        self.order = Order(len(problems[0].data), size, generator, device)

    def __iter__(self) -> Iterator[LoggedBatch]:
        for rows in self.order:
            columns = zip(*[[value[rows] for value in part] for part in self.parts], strict=True)
            yield LoggedBatch(*map(list, columns))

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)
