"""Confidence-adaptive decoding: a threshold with a ceiling, and ends only when half of the canvas is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import THRESHOLDS
from kdbench.tracks.dllm.policies.scores import best, first

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View


@dataclass(frozen=True)
class Adaptive(DecodingPolicy):
    """The clip(n, 1, ``most``) surest positions of the block, n of which reach ``gamma`` (Liang et al. 2026, CD4LM).

    As long as less than ``gate`` of the canvas is written, predictions of an end are barred: they are neither counted
    nor committed. Where all are barred the surest of them is committed all the same, so that every forward writes.
    """

    gamma: float = 0.8
    most: int = 4
    """Positions of a forward at most."""
    gate: float = 0.5
    """Share of the canvas, in [0, 1], that is written before an end may be."""
    cap: int | None = None
    """Forwards of a block at most: the last of them commits all that is left. None: as many as the block has positions,
    which no block exceeds."""
    points: tuple[float, ...] = field(default=THRESHOLDS)
    """Thresholds of the frontier."""
    kind: ClassVar[str] = "cad"

    def commit(self, view: View) -> Tensor:
        written = (view.canvas != view.mask).double().mean(dim=1)
        barred = (view.x0 == view.eos) & (written < self.gate)[:, None]
        allowed = view.candidates & ~barred
        scores = view.conf.masked_fill(~allowed, -torch.inf)
        count = (scores >= self.gamma).sum(dim=1).clamp(1, self.most)
        stuck = ~allowed.any(dim=1, keepdim=True)
        chosen = torch.where(stuck, best(view.conf, view.candidates), first(scores, count, allowed))
        last = view.block_step + 1 >= (view.size if self.cap is None else self.cap)
        return torch.where(last[:, None], view.candidates, chosen)

    def sweep(self) -> list[DecodingPolicy]:
        gammas = sorted({*self.points, self.gamma}, reverse=True)
        return [Adaptive(gamma, self.most, self.gate, self.cap, self.points) for gamma in gammas]
