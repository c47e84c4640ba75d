"""Matching of trajectories: images whose training moves weights as training on the real data does."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.tracks.dataset_distillation.blocks.views import augment


class Synthetic(nn.Module):
    """Images and the learning rate of the inner loop, which stays positive: rate = first * exp(scale * raw)."""

    def __init__(self, start: Tensor, rate: float, scale: float) -> None:
        """``start`` (N, C, H, W); ``scale`` makes the rate learn slower or faster than pixels, 0: not at all."""
        super().__init__()
        self.pixels = nn.Parameter(start.detach().clone())
        self.raw = nn.Parameter(start.new_zeros(()))
        self.log_first, self.scale = math.log(rate), scale

    def rate(self) -> Tensor:
        """A positive scalar."""
        return torch.exp(self.log_first + self.scale * self.raw)

    @torch.no_grad()
    def clamp(self, low: Tensor, high: Tensor) -> None:
        """Bring values back to what a picture may have; bounds (C, 1, 1)."""
        self.pixels.copy_(torch.maximum(torch.minimum(self.pixels, high), low))


def inner_batches(
    images: Tensor, labels: Tensor, size: int, steps: int, rng: np.random.Generator, *, augmented: bool, flip: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of the synthetic images (N, C, H, W), in random order and without one twice before all were
    there."""
    waiting: list[int] = []
    for _ in range(steps):
        if len(waiting) < min(size, len(labels)):
            waiting += rng.permutation(len(labels)).tolist()
        rows = torch.tensor(waiting[:size], device=images.device)
        del waiting[:size]
        x = images[rows]
        yield augment(x, rng, flip=flip) if augmented else x, labels[rows]


def trajectory_loss(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """||theta - target||^2 / ||start - target||^2 of weights (P,) (Cazenavette et al., CVPR 2022, equation 2)."""
    return (theta - target).pow(2).sum() / (start - target).pow(2).sum().clamp(min=1e-12)
