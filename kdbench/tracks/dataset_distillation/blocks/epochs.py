"""Epochs over real images, for committees and experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.dataset_distillation.blocks.views import augment
from kdbench.tracks.dataset_distillation.data.images import Images
from kdbench.training.loaders import Order


@dataclass
class Batch:
    """Some real images."""

    x: Tensor
    """(B, C, H, W) float32, normalised."""
    y: Tensor
    """(B,) int64."""
    rows: Tensor
    """(B,) int64: positions in the training split."""

    def __len__(self) -> int:
        return len(self.y)


class Reals:
    """Epochs over real images: each iteration is a new random order, the last batch of an epoch may be smaller."""

    def __init__(self, images: Images, order: Order, meter: Callable[[int], None]) -> None:
        """``meter(rows)`` is told of each batch."""
        self.images, self.order, self.meter = images, order, meter

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for rows in iter(self.order):
            self.meter(len(rows))
            yield Batch(self.images.x[rows], self.images.y[rows], rows)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)


def real_epochs(
    images: Images, epochs: int, batch_size: int, generator: torch.Generator, *, flip: bool, augmented: bool = True
) -> Iterator[Batch]:
    """Batches of ``epochs`` passes over real images, augmented by :func:`views.augment` unless said otherwise."""
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.x.device)
        for rows in order.split(batch_size):
            x = images.x[rows]
            yield Batch(augment(x, rng, flip=flip) if augmented else x, images.y[rows], rows)
