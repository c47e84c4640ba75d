"""Moving averages of weights whose memory is counted in images."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn


class HalfLife:
    """An average in which weights count half after ``images`` images, and sooner while few were seen.

    The half-life is the smaller of ``images`` and ``ramp`` times the images so far, with decay 0.5^(batch / half-life)
    at each update (Karras et al., NeurIPS 2022, released code; ``ramp`` 0.05 there, None for none). Declare it as state
    of ``task.fit``, with its network, or give it to :func:`~kdbench.tracks.diffusion.blocks.turns.alternate`.
    """

    def __init__(self, model: nn.Module, images: float, ramp: float | None = 0.05) -> None:
        if images <= 0 or (ramp is not None and ramp <= 0):
            raise ValueError(f"half-life and ramp are above 0, not {images} and {ramp}")
        self.network = deepcopy(model).requires_grad_(False).eval()
        """The averaged network."""
        self.images, self.ramp, self.seen = images, ramp, 0
        self._source = (model,)  # in a tuple: it belongs to the training, and is no part of this state

    @property
    def parts(self) -> list[Any]:
        """Everything of it that changes, for ``task.fit(..., state=[...])``."""
        return [self, self.network]

    def decay(self, batch: int) -> float:
        """Of an update after ``batch`` more images."""
        half = self.images if self.ramp is None else min(self.images, self.seen * self.ramp)
        return float(0.5 ** (batch / max(half, 1e-8)))

    @torch.no_grad()
    def update(self, batch: int) -> None:
        """Take the weights as they are now, ``batch`` images after the last update; buffers are copied."""
        (source,) = self._source
        weight = 1 - self.decay(batch)
        torch._foreach_lerp_(list(self.network.parameters()), list(source.parameters()), weight)
        for mine, theirs in zip(self.network.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
        self.seen += batch

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]
