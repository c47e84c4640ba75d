"""Density ratios from the logits of a discriminator, on a common scale over the noise levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdbench.tracks.diffusion.processes import Process

EPSILON = 1e-6
"""Added to means that are divided by, as in the released code of f-distill."""
LOGIT = 10.0
"""Largest size of a logit that is believed."""


class DensityRatio:
    """r = q / p at noised samples, q the teacher's density and p the generator's (Xu et al., 2025).

    A discriminator that tells real (positive) from generated samples at one noise level has the logit log(q / p) at its
    optimum, up to the error of a network. Raw ratios are clipped to ``least`` ... ``most`` and divided by the mean of
    their noise level, a moving average in ``bins`` that are even in time from ``t_min`` to ``t_max``; under p the mean
    of q / p is 1 at every level.
    """

    def __init__(
        self, process: Process, *, least: float = 0.1, most: float = 20.0, bins: int = 10, rate: float = 0.0
    ) -> None:
        """``rate``: share of the old mean that a bin keeps when it is updated; 0 takes the mean of the batch."""
        self.process, self.least, self.most, self.rate = process, least, most, rate
        self.means = torch.ones(bins)

    def raw(self, logits: Tensor) -> Tensor:
        """(B,) clipped ratios of logits (B,) or (B, heads), of which the mean is taken; float32, no gradient."""
        mean = logits.detach().float().flatten(1).mean(1) if logits.ndim > 1 else logits.detach().float()
        return mean.clamp(-LOGIT, LOGIT).exp().clamp(self.least, self.most)

    def bins(self, t: Tensor) -> Tensor:
        """(B,) int64 bins of times."""
        low, high = self.process.t_min, self.process.t_max
        width = (high - low) / len(self.means)
        return ((t.double() - low) / width).floor().long().clamp(0, len(self.means) - 1)

    def __call__(self, logits: Tensor, t: Tensor) -> Tensor:
        """(B,) ratios of mean about 1 at every noise level; updates the means of the levels that are in the batch."""
        ratio, where = self.raw(logits), self.bins(t)
        self.means = self.means.to(ratio.device)
        count = torch.bincount(where, minlength=len(self.means)).float()
        total = torch.zeros_like(self.means).index_add_(0, where, ratio)
        seen = count > 0
        new = self.rate * self.means + (1 - self.rate) * total / (count + EPSILON)
        self.means = torch.where(seen, new, self.means)
        return ratio / (self.means[where] + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means = state["means"].clone()
