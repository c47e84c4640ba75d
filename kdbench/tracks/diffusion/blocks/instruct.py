"""The loss of Uni-Instruct in phases: reverse KL at first, then the divergence that is asked for."""

from __future__ import annotations

from torch import Tensor

from kdbench.tracks.diffusion.blocks.fdiv import DIVERGENCES, FDivergence, expanded_loss
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.blocks.sid import omega, per_sample
from kdbench.tracks.diffusion.processes import Process
from kdbench.training.state import Values


def direction_loss(divergence: FDivergence, x: Tensor, real: Tensor, fake: Tensor, r: Tensor) -> Tensor:
    """(B,) h(r) <x, sg(fake - real)> / omega: the weighted direction of f-distill as a loss, a sum over pixels."""
    return divergence.h(r.detach()) * per_sample(x * (fake - real).detach()) / omega(x, real)


class Instruct(Values):
    """An objective of :class:`~kdbench.tracks.diffusion.blocks.identity.ScoreIdentity`. Declare it as state."""

    kept = ("updates",)

    def __init__(
        self,
        divergence: FDivergence,
        process: Process,
        ratio: DensityRatio,
        *,
        base: bool = True,
        theorem: bool = False,
        warmup: int = 0,
        notes: Notes | None = None,
    ) -> None:
        """``base`` False takes :func:`direction_loss` in the place of the expansion; ``theorem`` is the second part of
        theorem 3.2 in the place of the released code's. The first ``warmup`` updates are reverse KL."""
        self.divergence, self.process, self.ratio = divergence, process, ratio
        self.base, self.theorem, self.warmup, self.notes = base, theorem, warmup, notes
        self.range = Notes()
        """Least and largest h of a batch, over all updates. Declare it as state."""
        self.updates = 0

    def objective(self, x: Tensor, real: Tensor, fake: Tensor, t: Tensor, logits: Tensor | None) -> Tensor:
        """(B,) loss; counts the update. ``logits`` may be None for reverse KL, which needs no ratio."""
        warming = self.updates < self.warmup
        self.updates += 1
        kind = DIVERGENCES["rkl"] if warming else self.divergence
        r = t.new_ones(len(x)) if logits is None or self.divergence.constant else self.ratio(logits, t)
        h = kind.h(r)
        extent = {"h_min": h.min(), "h_max": h.max()}
        self.range.add(**extent)
        if self.notes is not None:
            self.notes.add(**extent)
        if not self.base and not warming:
            return direction_loss(kind, x, real, fake, r)
        level = self.process.level(t) if self.theorem else None
        return expanded_loss(kind, x, real, fake, r, level=level)
