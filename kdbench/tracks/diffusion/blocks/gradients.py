"""Gradients that generated samples get during training: their size, spread and tail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.training.state import Values

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.blocks.notes import Notes

SPAN = 10
"""Updates that the first and the last mean norm are taken over."""
TINY = 1e-12


class GradientTail(Values):
    """Norms and variance of the gradients of single samples. Declare it as state."""

    kept = ("tails", "spreads", "first", "last", "updates")

    def __init__(self) -> None:
        self.tails = self.spreads = self.first = self.last = 0.0
        self.updates = 0

    def add(self, gradient: Tensor, notes: Notes | None = None) -> None:
        """Gradients of single samples, (B, *shape); ``notes`` gets the ``gradient_norm``."""
        samples = gradient.detach().flatten(1).float()
        norms = samples.norm(dim=1)
        median, high = torch.quantile(norms, torch.tensor([0.5, 0.99], device=norms.device)).tolist()
        mean = float(norms.mean())
        variance = float((samples - samples.mean(0)).square().sum(1).mean())
        self.tails += high / max(median, TINY)
        self.spreads += variance / max(float(samples.mean(0).square().sum()), TINY)
        self.first += mean if self.updates < SPAN else 0.0
        self.last = mean if not self.updates else self.last + (mean - self.last) / SPAN
        self.updates += 1
        if notes is not None:
            notes.add(gradient_norm=mean)

    def watch(self, x: Tensor, notes: Notes | None = None) -> Tensor:
        """``x`` (B, *shape) itself, whose gradient is looked at in the backward pass.

        The loss is taken for a mean over the batch: the gradient of a sample is B times what arrives.
        """
        x.register_hook(lambda gradient: self.add(gradient * len(gradient), notes))
        return x

    def summary(self) -> dict[str, float]:
        """``gradient_tail``: 99th percentile of the norms of a batch over their median. ``gradient_noise``: variance of
        a batch over the square of its mean gradient. Both are means over the updates. ``gradient_kept``: mean norm of
        about the last ten updates over that of the first ten."""
        updates = max(1, self.updates)
        first = self.first / min(updates, SPAN)
        return {
            "gradient_tail": self.tails / updates,
            "gradient_noise": self.spreads / updates,
            "gradient_kept": self.last / max(first, TINY),
        }
