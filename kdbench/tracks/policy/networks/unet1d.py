"""A temporal U-Net over chunks of actions, with one noise level for a chunk or one for each of its positions.

The network of Diffusion Policy (Chi et al., RSS 2023): residual blocks of two convolutions over time with group
normalisation and Mish, modulated by an embedding of the noise level and by the observations. Levels of single positions
(Streaming Diffusion Policy) are embedded one by one, and averaged over neighbours where the time is coarser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.policy.worlds.base import Observation


def sinusoids(level: Tensor, width: int) -> Tensor:
    """Levels (...) to (..., width): sines and cosines of frequencies from 1 to 1e-4."""
    half = width // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=level.device) / max(1, half - 1))
    angles = level.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class Block(nn.Module):
    """Two convolutions; the first is followed by a scale and a shift from the condition of each position."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int = 5) -> None:
        super().__init__()
        groups = math.gcd(8, outputs)
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )
        self.modulate = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, T), condition (B, 1 or T, E)."""
        scale, shift = self.modulate(condition).transpose(1, 2).chunk(2, 1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class TemporalUNet(nn.Module):
    """``forward(x, level, obs)``: what is predicted of a noisy chunk; the output has the shape of ``x``."""

    def __init__(self, actions: int, observed: int, channels: Sequence[int], embedding: int = 32) -> None:
        """``actions`` A; ``observed`` numbers of a window of observations; ``channels`` from fine to coarse time."""
        super().__init__()
        self.coarse, self.embedding = 2 ** (len(channels) - 1), embedding
        self.level = nn.Sequential(nn.Linear(embedding, 2 * embedding), nn.Mish(), nn.Linear(2 * embedding, embedding))
        self.window = nn.Sequential(nn.Linear(observed, 2 * embedding), nn.Mish(), nn.Linear(2 * embedding, embedding))
        condition = 2 * embedding
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = actions
        for number, width in enumerate(channels):
            last = number == len(channels) - 1
            shrink = nn.Identity() if last else nn.Conv1d(width, width, 3, 2, 1)
            parts = [Block(before, width, condition), Block(width, width, condition), shrink]
            self.down.append(nn.ModuleList(parts))
            before = width
        self.middle = Block(before, before, condition)
        for width in reversed(channels[:-1]):
            grow = nn.ConvTranspose1d(before, width, 4, 2, 1)
            self.up.append(nn.ModuleList([grow, Block(2 * width, width, condition)]))
            before = width
        self.out = nn.Conv1d(before, actions, 1)
        self.register_buffer("mean", torch.zeros(observed))
        self.register_buffer("std", torch.ones(observed))

    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Observations are shifted and scaled by these (O,), the same for each observation of a window."""
        count = len(self.mean) // len(mean)
        self.mean.copy_(mean.repeat(count))
        self.std.copy_(std.repeat(count))

    def forward(self, x: Tensor, level: Tensor, obs: Observation) -> Tensor:
        """x (B, T, A); level (B,) or (B, T); ``obs.vector`` (B, T_o O)."""
        length = x.shape[1]
        extra = -length % self.coarse
        level = level[:, None] if level.ndim == 1 else level
        if extra:
            x = torch.cat([x, x[:, -1:].expand(-1, extra, -1)], 1)
            level = torch.cat([level, level[:, -1:].expand(-1, extra)], 1) if level.shape[1] > 1 else level
        window = self.window((obs.vector - self.mean) / self.std)[:, None]
        embedded = self.level(sinusoids(level, self.embedding))
        condition = torch.cat([embedded, window.expand(-1, embedded.shape[1], -1)], -1)
        x, kept, conditions = x.transpose(1, 2), [], []
        for first, second, shrink in self.down:  # type: ignore[misc]
            x = second(first(x, condition), condition)
            kept.append(x)
            conditions.append(condition)
            x = shrink(x)
            if condition.shape[1] > 1 and not isinstance(shrink, nn.Identity):
                condition = F.avg_pool1d(condition.transpose(1, 2), 2).transpose(1, 2)
        kept.pop()
        condition = conditions.pop()
        x = self.middle(x, condition)
        for grow, block in self.up:  # type: ignore[misc]
            condition = conditions.pop()
            x = block(torch.cat([grow(x), kept.pop()], 1), condition)
        return self.out(x).transpose(1, 2)[:, :length]
