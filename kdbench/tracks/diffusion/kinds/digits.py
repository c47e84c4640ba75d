"""Handwritten digits, asked for by their class."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import digits
from kdbench.tracks.diffusion.data.specs import DigitsData
from kdbench.tracks.diffusion.kinds.base import Split
from kdbench.tracks.diffusion.kinds.judged import Judged


class Digits(Judged):
    """Real digits of 8x8 pixels, or enlarged; token 1 is the digit 0."""

    classes = (digits.CLASSES,)
    vocabulary = (digits.CLASSES + 1,)

    @property
    def data(self) -> DigitsData:
        """The task's data."""
        assert isinstance(self.spec.data, DigitsData)
        return self.spec.data

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, self.data.size, self.data.size)

    def make(self, name: str) -> Split:
        rows = digits.rows_of(name, self.data.seed, getattr(self.data, name, None))
        x, labels = digits.images(self.data.size)
        return Split(x[rows], Condition.of_tokens(labels[rows] + 1))

    def pleasing(self) -> Tensor:
        """Digits with more ink than half of their class."""
        split = self.split("train")
        assert split.cond.tokens is not None
        ink, labels = split.x.flatten(1).mean(1), split.cond.tokens[:, 0]
        medians = torch.stack([ink[labels == label].median() for label in range(1, digits.CLASSES + 1)])
        return (ink > medians[labels - 1]).long()
