"""Policies without training: a number of tokens, a threshold, a factor, everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.scores import Order, best, first, ranks, score

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View

THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3)
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
COUNTS = (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class TopK(DecodingPolicy):
    """``k`` positions a forward, those with the largest scores."""

    k: int = 1
    order: Order = "confidence"
    points: tuple[int, ...] = field(default=COUNTS)
    """Numbers of the frontier."""
    kind: ClassVar[str] = "topk"

    def commit(self, view: View) -> Tensor:
        count = torch.full((len(view),), self.k, device=view.conf.device)
        return first(score(view, self.order), count, view.candidates)

    def sweep(self) -> list[DecodingPolicy]:
        return [TopK(k, self.order, self.points) for k in sorted({*self.points, self.k})]


@dataclass(frozen=True)
class Threshold(DecodingPolicy):
    """All positions whose score is at least ``gamma``, and the best one where none is (Wu et al. 2025, Fast-dLLM)."""

    gamma: float = 0.9
    order: Order = "confidence"
    points: tuple[float, ...] = field(default=THRESHOLDS)
    """Thresholds of the frontier."""
    kind: ClassVar[str] = "threshold"

    def commit(self, view: View) -> Tensor:
        scores = score(view, self.order)
        return (scores >= self.gamma) & view.candidates | best(scores, view.candidates)

    def sweep(self) -> list[DecodingPolicy]:
        return [Threshold(gamma, self.order, self.points) for gamma in sorted({*self.points, self.gamma}, reverse=True)]


@dataclass(frozen=True)
class Factor(DecodingPolicy):
    """The largest n with (n + 1)(1 - c_n) < f, c_n the n-th largest score of the block; at least 1 (Wu et al. 2025)."""

    factor: float = 1.0
    order: Order = "confidence"
    points: tuple[float, ...] = field(default=FACTORS)
    """Factors of the frontier."""
    kind: ClassVar[str] = "factor"

    def commit(self, view: View) -> Tensor:
        scores = score(view, self.order)
        rank = ranks(scores)
        holds = ((rank + 2) * (1 - scores) < self.factor) & view.candidates  # rank counts from 0
        count = torch.where(holds, rank + 1, 0).amax(dim=1).clamp_min(1)
        return (rank < count[:, None]) & view.candidates

    def sweep(self) -> list[DecodingPolicy]:
        return [Factor(factor, self.order, self.points) for factor in sorted({*self.points, self.factor})]


@dataclass(frozen=True)
class All(DecodingPolicy):
    """Everything at once: one forward a block."""

    kind: ClassVar[str] = "all"

    def commit(self, view: View) -> Tensor:
        return view.candidates
