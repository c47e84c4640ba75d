"""Splits in memory and the batches that are taken from them by indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.training.loaders import Order

ROLL = 2
"""Largest shift of the augmentation, in pixels."""


@dataclass
class Batch:
    """Some images of a split."""

    x: Tensor
    """(B, 3, P, P) float32, normalised."""
    y: Tensor
    """(B,) int64 labels; -1 where a method sees none."""
    index: Tensor
    """(B,) int64 identity of each image within the task; -1 for images that are no longer those of the task."""
    augmented: bool = False
    """Whether ``x`` differs from the stored images, so that cached teacher outputs do not apply."""

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class Split:
    """A whole split, as a method sees it."""

    x: Tensor
    """(N, 3, P, P) float32, normalised."""
    y: Tensor
    """(N,) int64; -1: unlabelled."""
    index: Tensor
    """(N,) int64: identity of each image within the task, as in :class:`Batch`."""
    meta: dict[str, Tensor]
    """(N,) tensors; nothing that tells a hidden label."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Split:
        """The images at some positions (int64) or of a mask (bool)."""
        return Split(self.x[rows], self.y[rows], self.index[rows], {k: v[rows] for k, v in self.meta.items()})

    def batch(self, rows: Tensor | None = None) -> Batch:
        """The images at some positions, all by default, as one batch."""
        if rows is None:
            return Batch(self.x, self.y, self.index)
        return Batch(self.x[rows], self.y[rows], self.index[rows])

    def batches(self, size: int) -> Iterator[Batch]:
        """All images in order."""
        for start in range(0, len(self), size):
            stop = start + size
            yield Batch(self.x[start:stop], self.y[start:stop], self.index[start:stop])


def roll(x: Tensor, generator: torch.Generator, reach: int = ROLL) -> Tensor:
    """Each image (B, C, H, W) shifted cyclically by its own uniform whole number of pixels, at most ``reach``."""
    b, _, h, w = x.shape
    shift = torch.randint(-reach, reach + 1, (2, b, 1), generator=generator).to(x.device)
    rows = (torch.arange(h, device=x.device) - shift[0]) % h
    columns = (torch.arange(w, device=x.device) - shift[1]) % w
    each = torch.arange(b, device=x.device)
    # Indices around the slice put the channels last.
    return x[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class Batches:
    """Epochs over a split: each iteration is a new random order, the last batch of an epoch may be smaller."""

    def __init__(self, split: Split, size: int, generator: torch.Generator, *, augment: bool) -> None:
        self.split = split
        self.size = size
        self.generator = generator
        self.augment = augment
        self._order = Order(len(split), size, generator, split.x.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._batch, self._order)

    def _batch(self, rows: Tensor) -> Batch:
        batch = self.split.batch(rows)
        if not self.augment:
            return batch
        return Batch(roll(batch.x, self.generator), batch.y, batch.index, augmented=True)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest epoch is; the state of ``generator`` is not part of it."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self._order.load_state_dict(state)
