"""Demonstrations, and the batches that loaders make of them: chunks of actions, and single steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.tracks.policy.worlds.base import Observation
from kdbench.training.loaders import Order


@dataclass
class Episodes:
    """N demonstrations of at most L steps; what lies after the end of one is 0."""

    vector: Tensor
    """(N, L, O) float32: the observed vector; of worlds with pictures the state that they show."""
    actions: Tensor
    """(N, L, A) float32 in [-1, 1]: the answer to each observation."""
    length: Tensor
    """(N,) int64 steps."""
    robot: Tensor
    """(N,) int64; 0 where there is one robot."""
    words: Tensor
    """(N, W) int64 of the sentence that was said; W is 0 where there are none."""

    def __len__(self) -> int:
        return len(self.vector)

    def rows(self, index: Tensor) -> Episodes:
        """Some of the episodes."""
        return Episodes(**{name: value[index] for name, value in vars(self).items()})

    def mask(self) -> Tensor:
        """(N, L) bool: steps that were made."""
        return torch.arange(self.vector.shape[1]) < self.length[:, None]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (O,) of the observed vector over all steps, the latter at least 1e-3."""
        values = self.vector[self.mask()].double()
        return values.mean(0).float(), values.std(0, correction=0).clamp_min(1e-3).float()

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in vars(self).items()}, folder / "episodes.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Episodes:
        """What :meth:`save` wrote."""
        return cls(**load_file(folder / "episodes.safetensors"))

    @classmethod
    def joined(cls, parts: list[Episodes]) -> Episodes:
        """Several sets as one, as long as the longest."""
        longest = max(part.vector.shape[1] for part in parts)

        def padded(value: Tensor) -> Tensor:
            return torch.nn.functional.pad(value, (0, 0, 0, longest - value.shape[1]))

        return cls(
            torch.cat([padded(part.vector) for part in parts]),
            torch.cat([padded(part.actions) for part in parts]),
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("length", "robot", "words")),
        )


@dataclass
class ChunkBatch:
    """Observations and the chunk of actions that begins at the oldest of them."""

    obs: Observation
    """Its vector is (B, T_o O): the observations of a window, the oldest first."""
    actions: Tensor
    """(B, T_p, A) float32; the one at T_o - 1 answers to the newest observation."""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass
class StepBatch:
    """Single decisions."""

    obs: Observation
    actions: Tensor
    """(B, A) float32 in [-1, 1]."""

    def __len__(self) -> int:
        return len(self.actions)


Render = Callable[[Tensor], Observation]
"""Makes of stored vectors (B, O) what policies see."""


class ChunkLoader:
    """Windows that end at every step of every episode, in a new random order each epoch.

    Before the start the first observation and action are repeated, after the end the last action.
    """

    def __init__(
        self,
        episodes: Episodes,
        *,
        observed: int,
        horizon: int,
        size: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        render: Render | None = None,
    ) -> None:
        """``observed`` T_o observations, ``horizon`` T_p actions, ``size`` windows a batch."""
        self.episodes, self.observed, self.horizon, self.device, self.render = (
            episodes, observed, horizon, torch.device(device), render
        )  # fmt: skip
        row = torch.arange(len(episodes)).repeat_interleave(episodes.length)
        first = torch.repeat_interleave(episodes.length.cumsum(0) - episodes.length, episodes.length)
        self.index = torch.stack([row, torch.arange(len(row)) - first], 1)
        """(K, 2) episode and step of each window."""
        self.order = Order(len(self.index), min(size, len(self.index)), generator)

    def batch(self, windows: Tensor) -> ChunkBatch:
        """The windows (B,) of :attr:`index`."""
        row, now = self.index[windows].T
        first, last = now - self.observed + 1, self.episodes.length[row] - 1
        seen = (first[:, None] + torch.arange(self.observed)).clamp_min(0)
        done = (first[:, None] + torch.arange(self.horizon)).clamp_min(0).minimum(last[:, None])
        actions = self.episodes.actions[row[:, None], done]
        vector = self.episodes.vector[row[:, None], seen]
        if self.render is None:
            obs = Observation(vector.flatten(1))
        else:
            obs = self.render(vector[:, -1])
            obs.text = self.episodes.words[row] if self.episodes.words.shape[1] else None
        return ChunkBatch(obs.to(self.device), actions.to(self.device))

    def __iter__(self) -> Iterator[ChunkBatch]:
        return (self.batch(windows) for windows in self.order)

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)


class StepLoader:
    """Single steps of all episodes, in a new random order each epoch."""

    def __init__(
        self, vector: Tensor, actions: Tensor, robot: Tensor, size: int, generator: torch.Generator, device: Any = "cpu"
    ) -> None:
        """``vector`` (K, O), ``actions`` (K, A), ``robot`` (K,)."""
        self.vector, self.actions, self.robot = (value.to(device) for value in (vector, actions, robot))
        self.order = Order(len(vector), min(size, len(vector)), generator, device)

    @classmethod
    def of(cls, episodes: Episodes, size: int, generator: torch.Generator, device: Any = "cpu") -> StepLoader:
        """Of all steps of demonstrations."""
        mask = episodes.mask()
        robot = episodes.robot[:, None].expand_as(mask)[mask]
        return cls(episodes.vector[mask], episodes.actions[mask], robot, size, generator, device)

    def __iter__(self) -> Iterator[StepBatch]:
        for rows in self.order:
            yield StepBatch(Observation(self.vector[rows], robot=self.robot[rows]), self.actions[rows])

    def __len__(self) -> int:
        return len(self.order)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)


def of_rollouts(
    observations: list[Observation], actions: np.ndarray, length: np.ndarray, keep: np.ndarray, robot: int = 0
) -> Episodes:
    """Demonstrations of recorded episodes: ``keep`` (n,) bool says which."""
    vector = torch.stack([obs.vector for obs in observations], 1)
    mask = torch.arange(vector.shape[1]) < torch.from_numpy(length)[:, None]
    rows = torch.from_numpy(np.flatnonzero(keep))
    text = observations[0].text
    return Episodes(
        (vector * mask[..., None])[rows],
        (torch.from_numpy(actions) * mask[..., None])[rows],
        torch.from_numpy(length)[rows],
        torch.full((len(rows),), robot),
        torch.zeros(len(rows), 0, dtype=torch.int64) if text is None else text[rows],
    )
