"""What loaders give: real samples, prior noise with prompts, and the turns of adversarial and score distillation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.loaders import Order, cycle

EPOCH = 100
"""Batches of an epoch of what has no end."""


@dataclass
class Batch:
    """Samples of the data."""

    x: Tensor
    """``(B, *shape)`` float32; images in [-1, 1]."""
    cond: Condition
    index: Tensor
    """(B,) int64: rows of the split."""

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class Draw:
    """Prior noise and what is asked for: all that methods without data learn from."""

    noise: Tensor
    """``(B, *shape)`` standard normal."""
    cond: Condition

    def __len__(self) -> int:
        return len(self.noise)


@dataclass
class Turn:
    """Batches of some updates of a critic and one of a generator; every update has fresh ones."""

    critics: list[Draw]
    draw: Draw
    """The generator's."""
    reals: list[Batch] = field(default_factory=list)
    """Samples of the data, one batch per update, the generator's last; empty for methods without data."""

    def __len__(self) -> int:
        return len(self.draw) + sum(map(len, self.critics))


class Reals:
    """Batches of a split in a new random order each epoch; the last of an epoch may be smaller."""

    def __init__(self, x: Tensor, cond: Condition, order: Order, on_batch: Callable[[int], None]) -> None:
        self.x, self.cond, self.order, self._on_batch = x, cond, order, on_batch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.order:
            self._on_batch(len(rows))
            yield Batch(self.x[rows], self.cond[rows], rows)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)


class Draws:
    """Batches of prior noise and prompts without end, in epochs of 100."""

    def __init__(self, make: Callable[[int], Draw], size: int) -> None:
        self._make, self.size, self._taken, self._resumed = make, size, 0, 0

    def __iter__(self) -> Iterator[Draw]:
        start, self._resumed = self._resumed, 0
        for number in range(start, EPOCH):
            self._taken = number + 1
            yield self._make(self.size)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._taken = self._resumed = state["taken"]


class Turns:
    """Turns without end, in epochs of 100: ``ratio`` draws for critics and one for the generator each."""

    def __init__(self, make: Callable[[int], Draw], size: int, ratio: int, reals: Reals | None) -> None:
        self._make, self.size, self.ratio, self._taken, self._resumed = make, size, ratio, 0, 0
        self._reals = None if reals is None else cycle(reals)

    def __iter__(self) -> Iterator[Turn]:
        start, self._resumed = self._resumed, 0
        for number in range(start, EPOCH):
            self._taken = number + 1
            draws = [self._make(self.size) for _ in range(self.ratio + 1)]
            reals = [] if self._reals is None else [next(self._reals) for _ in range(self.ratio + 1)]
            yield Turn(draws[:-1], draws[-1], reals)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken, "reals": None if self._reals is None else self._reals.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._taken = self._resumed = state["taken"]
        if self._reals is not None:
            self._reals.load_state_dict(state["reals"])


def drawer(
    shape: tuple[int, ...],
    conditions: Callable[[int, torch.Generator], Condition],
    generator: torch.Generator,
    device: torch.device,
) -> Callable[[int], Draw]:
    """A function that gives ``Draw`` of a number of rows; its generator is the caller's."""

    def make(count: int) -> Draw:
        noise = torch.randn(count, *shape, generator=generator)
        return Draw(noise.to(device), conditions(count, generator).to(device))

    return make
