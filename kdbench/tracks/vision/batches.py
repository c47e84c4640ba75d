"""Splits in memory and the batches that are taken from them by indexing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.tracks.vision.data import MEAN, STD
from kdbench.training.loaders import Order, cycle

ROLL = 2
"""Largest shift of the augmentation, in pixels."""
CROP = 4
"""Largest shift of ``crop_flip``, in pixels."""


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
    """(N, 3, P, P) float32, normalised; of streamed data a :class:`kdbench.tracks.vision.streams.Stream`."""
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
        x = self.x[rows] if isinstance(self.x, Tensor) else self.x.take(rows)
        return Split(x, self.y[rows], self.index[rows], {k: v[rows] for k, v in self.meta.items()})

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


def crop_flip(x: Tensor, generator: torch.Generator, reach: int = CROP) -> Tensor:
    """Each image (B, C, H, W) shifted by at most ``reach`` pixels over a black border, and mirrored or not.

    Random crops of the padded image and horizontal flips, as for CIFAR since He et al., CVPR 2016 (section 4.2).
    """
    b, _, h, w = x.shape
    shift = torch.randint(0, 2 * reach + 1, (2, b, 1), generator=generator).to(x.device)
    mirrored = torch.randint(0, 2, (b, 1), generator=generator).bool().to(x.device)
    rows, columns = shift[0] + torch.arange(h, device=x.device), shift[1] + torch.arange(w, device=x.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(x, (reach,) * 4, value=-MEAN / STD)
    each = torch.arange(b, device=x.device)
    return padded[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def normalised(pixels: Tensor) -> Tensor:
    """Bytes (B, 3, P, P) as the normalised float32 images of the track."""
    return pixels.float().div_(255).sub_(MEAN).div_(STD)


AUGMENTATIONS = {"roll": roll, "crop-flip": crop_flip}


class Batches:
    """Epochs over a split: each iteration is a new random order, the last batch of an epoch may be smaller."""

    def __init__(
        self, split: Split, size: int, generator: torch.Generator, *, augment: bool, how: str = "roll"
    ) -> None:
        """``how``: a name in ``AUGMENTATIONS``."""
        self.split = split
        self.size = size
        self.generator = generator
        self.augment = augment
        self.how = how
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
        return Batch(AUGMENTATIONS[self.how](batch.x, self.generator), batch.y, batch.index, augmented=True)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest epoch is; the state of ``generator`` is not part of it."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self._order.load_state_dict(state)


@dataclass
class Pair:
    """A batch of labelled images and one of other images, whose losses are averaged separately."""

    labeled: Batch
    other: Batch

    def __len__(self) -> int:
        return len(self.labeled) + len(self.other)

    @property
    def x(self) -> Tensor:
        """All images, the labelled ones first: one forward pass updates normalisation statistics once."""
        return torch.cat([self.labeled.x, self.other.x])

    def parts(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of all images (B, ...) apart: of the labelled and of the other ones."""
        return outputs[: len(self.labeled)], outputs[len(self.labeled) :]


class Pairs(Iterator[Pair]):
    """Two loaders side by side without end, each epoch after epoch, with a position that can be saved."""

    def __init__(self, labeled: Iterable[Batch], other: Iterable[Batch]) -> None:
        self._sides = (cycle(labeled), cycle(other))

    def __next__(self) -> Pair:
        return Pair(*(next(side) for side in self._sides))

    def state_dict(self) -> dict[str, Any]:
        return {"sides": [side.state_dict() for side in self._sides]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for side, own in zip(self._sides, state["sides"], strict=True):
            side.load_state_dict(own)


class Selected(Iterator[Batch]):
    """Batches of a changing part of a split without end, in random orders; a new part starts a new order."""

    def __init__(self, split: Split, size: int, generator: torch.Generator, *, augment: bool) -> None:
        self.split, self.size, self.generator, self.augment = split, size, generator, augment
        self.choose(torch.arange(len(split), device=split.x.device))

    def choose(self, rows: Tensor) -> None:
        """Take batches from these positions (n,) from now on, at least one."""
        self._start(rows)
        self._epoch = iter(self._batches)

    def _start(self, rows: Tensor) -> None:
        self.rows = rows
        self._batches = Batches(self.split.take(rows), self.size, self.generator, augment=self.augment)

    def __next__(self) -> Batch:
        batch = next(self._epoch, None)
        if batch is None:
            self._epoch = iter(self._batches)
            batch = next(self._epoch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "order": self._batches.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start(state["rows"].to(self.split.x.device))
        self._batches.load_state_dict(state["order"])
        self._epoch = iter(self._batches)
