"""A pool of a model's own samples that is renewed every few batches: on-policy data at a part of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdbench.training.replay import ReplayBuffer, batch_of


class Pool:
    """Batches of samples, each sample in several of them: ``pool(n)`` is a batch of ``n``.

    A call gives different sequences, drawn anew in each; after ``every`` calls the pool has ``size`` new samples of the
    model as it is then. With ``every`` 1 and ``size`` the size of a batch, every batch is fresh.
    """

    def __init__(
        self, sample: Callable[[int], Any], *, size: int, every: int, like: Any, rng: np.random.Generator
    ) -> None:
        """``sample(n)`` gives n samples as a batch, and ``like`` is a batch of the type that is wanted."""
        if every < 1:
            raise ValueError(f"a pool serves at least one batch, not {every}")
        self.sample, self.every, self.like, self.rng = sample, every, like, rng
        self.buffer = ReplayBuffer(size)
        self.served = 0

    def __call__(self, n: int) -> Any:
        """A batch of ``n`` sequences. Raises ``ValueError`` where the pool is smaller than that."""
        if n > self.buffer.capacity:
            raise ValueError(f"a pool of {self.buffer.capacity} samples has no batch of {n}")
        if self.served % self.every == 0:
            self.buffer.push(self.sample(self.buffer.capacity))
        self.served += 1
        return batch_of(self.buffer.sample(n, self.rng), self.like)

    def state_dict(self) -> dict[str, Any]:
        """The samples and how often they were asked for; the states of the generators are not part of it."""
        return {"served": self.served, "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next batch is the one that would have followed."""
        self.served = state["served"]
        self.buffer.load_state_dict(state["buffer"])
