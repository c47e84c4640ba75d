"""A bound on entropy in nats, which does not depend on the size of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.scores import best

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View

BOUNDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)


@dataclass(frozen=True)
class Certain(DecodingPolicy):
    """All positions whose distribution has an entropy of at most ``nats``, and the one with the least where none has.

    (Chen et al. 2025, dParallel, as released: 0.5 nats.)
    """

    nats: float = 0.5
    points: tuple[float, ...] = field(default=BOUNDS)
    """Bounds of the frontier."""
    kind: ClassVar[str] = "certain"

    def commit(self, view: View) -> Tensor:
        entropy = -torch.xlogy(view.probs, view.probs).sum(dim=-1)
        scores = (-entropy).masked_fill(~view.candidates, -torch.inf)
        return (entropy <= self.nats) & view.candidates | best(scores, view.candidates)

    def sweep(self) -> list[DecodingPolicy]:
        return [Certain(nats, self.points) for nats in sorted({*self.points, self.nats})]
