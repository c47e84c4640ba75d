"""Labelled views of a set of images, epoch after epoch: what a network learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling, hard_loss, learning_loss, vote
from kdbench.tracks.dataset_distillation.blocks.views import views


@dataclass
class Part:
    """A part of a batch, with the loss that its labels make."""

    x: Tensor
    """(B, C, H, W), augmented and mixed."""
    loss: Callable[[Tensor], Tensor]
    """Of the logits (B, K); a mean over the part."""

    def __len__(self) -> int:
        return len(self.x)


class Store:
    """Images with their labels. Logits of batches are made when an epoch is first asked for, and kept as float16."""

    def __init__(
        self,
        images: Tensor,
        classes: Tensor,
        labelling: Labelling,
        networks: Sequence[nn.Module],
        *,
        batch_size: int,
        augmented: bool,
        flip: bool,
        seed: int,
    ) -> None:
        """``images`` (N, C, H, W), ``classes`` (N,); ``networks`` are the committee. ``seed`` decides the views of
        labels that are stored by batch."""
        self.images, self.classes, self.labelling, self.networks = images, classes, labelling, networks
        self.batch_size, self.augmented, self.flip, self.seed = batch_size, augmented, flip, seed
        self.logits = vote(networks, labelling, images) if labelling.kind == "static" else None
        """(N, K), ``static``."""
        self._batches: dict[tuple[int, int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def kept(self) -> int:
        """Logits that are held."""
        return sum(t.numel() for t in self._batches.values()) + (0 if self.logits is None else self.logits.numel())

    def epoch(self, number: int, seed: int) -> Iterator[list[Part]]:
        """Batches of an epoch, each as its parts. ``seed`` decides the views, unless labels belong to certain ones."""
        labelling = self.labelling
        stored = labelling.kind == "batches"
        found = views(
            self.images,
            self.batch_size,
            number,
            self.seed if stored else seed,
            augmented=self.augmented,
            flip=self.flip,
            kind=labelling.mix,
            alpha=labelling.alpha,
        )
        for index, view in enumerate(found):
            mixed, size = view.mixed, -(-len(view.rows) // labelling.parts)
            y = self.classes[view.rows]
            target = None if self.logits is None else mixed.interpolate(self.logits[view.rows])
            parts = []
            for k, rows in enumerate(torch.arange(len(view.rows), device=y.device).split(size)):
                x = mixed.x[rows]
                if labelling.kind == "hard":
                    parts.append(Part(x, _hard(y[rows], y[mixed.perm][rows], mixed.lam)))
                else:
                    logits = target[rows] if target is not None else self._of_batch((number, index, k), x)
                    parts.append(Part(x, _soft(logits, labelling)))
            yield parts

    def _of_batch(self, place: tuple[int, int, int], x: Tensor) -> Tensor:
        if place not in self._batches:
            self._batches[place] = vote(self.networks, self.labelling, x).half()
        return self._batches[place].float()


def _hard(first: Tensor, second: Tensor, lam: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: hard_loss(logits, first, second, lam)


def _soft(target: Tensor, labelling: Labelling) -> Callable[[Tensor], Tensor]:
    return lambda logits: learning_loss(logits, target, labelling)
