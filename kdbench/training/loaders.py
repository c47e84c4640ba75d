"""Loaders whose position can be saved, and the position in those that know nothing of it.

A loader is iterated epoch after epoch. One with ``state_dict()`` and ``load_state_dict()`` (as of torchdata) says where
its latest iteration is, and its next iteration after ``load_state_dict`` goes on from there. Any other one is brought
to its position by iterating it again from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import JobError
from kdbench.training.state import Stateful


class _Permutation:
    """One epoch: a permutation of rows, and how many batches of it are taken."""

    def __init__(self, rows: Tensor, size: int, taken: int = 0) -> None:
        self.rows, self.size, self.taken = rows, size, taken

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        start = self.taken * self.size
        if start >= len(self.rows):
            raise StopIteration
        self.taken += 1
        return self.rows[start : start + self.size]


class Order:
    """Rows 0 to ``count`` - 1 in random order, ``size`` at a time: each iteration is one epoch, in a new order.

    The last batch of an epoch may be smaller. Orders are drawn from ``generator``, whose state is not part of this.
    """

    def __init__(self, count: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        self.count, self.size, self.generator, self.device = count, size, generator, device
        self._latest: _Permutation | None = None
        self._resumed: _Permutation | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        epoch, self._resumed = self._resumed, None
        if epoch is None:
            rows = torch.randperm(self.count, generator=self.generator).to(self.device)
            epoch = _Permutation(rows, self.size)
        self._latest = epoch
        return epoch

    def state_dict(self) -> dict[str, Any]:
        return {} if self._latest is None else {"rows": self._latest.rows, "taken": self._latest.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._resumed = _Permutation(state["rows"].to(self.device), self.size, state["taken"]) if state else None


class Epochs:
    """The epochs of a loader one by one, with a position that can be saved."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.finished = 0
        self.taken = 0
        self.last: Any = None
        """The batch before the restored position, where it had to be made again."""
        self._inside = False
        self._rest: Iterator[Any] | None = None

    def epoch(self) -> Iterator[Any]:
        """The batches of the next epoch, or what is left of the one that a restored position lies in.

        Raises ``JobError`` at the end of an epoch that had no batch.
        """
        batches, self._rest = self._rest, None
        if batches is None:
            batches = iter(self.loader)
            self.taken = 0
        return self._counted(batches)

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        self._inside = True
        for batch in batches:
            self.taken += 1
            yield batch
        self._inside = False
        if not self.taken:
            raise JobError("the data loader gave no batch")
        self.finished, self.taken = self.finished + 1, 0

    def state_dict(self) -> dict[str, Any]:
        state = {"finished": self.finished, "taken": self.taken, "inside": self._inside}
        if isinstance(self.loader, Stateful):
            state["loader"] = self.loader.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.finished, self.taken, self._inside = state["finished"], state["taken"], state["inside"]
        if isinstance(self.loader, Stateful):
            self.loader.load_state_dict(state["loader"])
            self._rest = iter(self.loader) if self._inside else None
            return
        for _ in range(self.finished):
            for _ in self.loader:
                pass
        self._rest = iter(self.loader) if self._inside else None
        if self._rest is not None:
            for batch in islice(self._rest, self.taken):
                self.last = batch


class Cycle(Iterator[Any]):
    """Batches of a loader, epoch after epoch, with a position that can be saved.

    Raises ``JobError`` where an epoch has no batch.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.epochs = Epochs(loader)
        self._batches = _forever(self.epochs)

    def __next__(self) -> Any:
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return self.epochs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epochs.load_state_dict(state)
        self._batches = _forever(self.epochs)


def _forever(epochs: Epochs) -> Iterator[Any]:
    # no method: a generator that its owner keeps and that refers to its owner would live on with its random generators
    while True:
        yield from epochs.epoch()


def cycle(loader: Iterable[Any]) -> Cycle:
    """Batches of ``loader``, epoch after epoch. Raises ``JobError`` where an epoch has no batch."""
    return Cycle(loader)
