"""What is worth a point of the curve and is no loss of the network that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.training.state import Values


class Notes(Values):
    """Means of what is worth a point of the curve and is no loss: norms of gradients, accuracies, losses of critics."""

    kept = ("sums", "counts")

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: Tensor | float) -> None:
        """Take note of numbers; tensors are not read before the point is due."""
        for name, value in values.items():
            now = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums[name] + now if name in self.sums else now
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means
