"""The best weights of a training by some value on validation data: early stopping that does not need to stop."""

from __future__ import annotations

import math

from torch import Tensor, nn

from kdbench.training.state import Values


class BestWeights(Values):
    """Weights and buffers of a network at the smallest value seen; declare it as ``state`` of ``task.fit``."""

    kept = ("value", "step", "weights")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.value, self.step = math.inf, -1
        self.weights: dict[str, Tensor] = {}

    def offer(self, step: int, value: float) -> bool:
        """Keep the network as it is now if ``value`` is smaller than all before; whether it was."""
        if not value < self.value:
            return False
        self.value, self.step = value, step
        self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return True

    def restore(self) -> None:
        """Put the best weights back; nothing where none were offered."""
        if self.weights:
            self.model.load_state_dict(self.weights)
