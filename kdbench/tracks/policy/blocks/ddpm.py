"""Discrete diffusion of chunks with one level for a chunk, or one for each of its positions.

Levels are 0 (least noise) to N - 1; -1 is clean. With a_t the cumulated signal of the squared cosine schedule (Nichol
and Dhariwal, ICML 2021), x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, and networks predict e. Predicted actions are clipped
to [-1, 1], as in Diffusion Policy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Ddpm:
    """The schedule of N levels, with the steps of DDPM (Ho et al., 2020) and DDIM (Song et al., 2021)."""

    def __init__(self, levels: int) -> None:
        if levels < 1:
            raise ValueError(f"a schedule has at least one level, not {levels}")
        self.levels = levels
        grid = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        signal = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp_max(0.999)
        self._signal = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
        """(N + 1,) cumulated signal of the levels -1 to N - 1."""

    def signal(self, level: Tensor, like: Tensor) -> Tensor:
        """a of levels (B,) or (B, T), in the shape that multiplies ``like`` (B, T, A)."""
        values = self._signal.to(like.device)[level + 1].to(like.dtype)
        return values[:, None, None] if level.ndim == 1 else values[..., None]

    def noised(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x_t of clean chunks (B, T, A); positions of level -1 stay clean."""
        a = self.signal(level, x0)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def clean(self, x: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """x_0 where the noise is ``noise``, clipped to [-1, 1]."""
        a = self.signal(level, x)
        return ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-1, 1)

    def step(self, x: Tensor, noise: Tensor, level: Tensor, fresh: Tensor) -> Tensor:
        """From ``level`` to ``level`` - 1 with the posterior of DDPM, where the network says ``noise``.

        ``fresh`` is standard normal; the last step, to -1, adds none of it. Positions that are clean already stay.
        """
        a, before = self.signal(level, x), self.signal((level - 1).clamp_min(-1), x)
        x0 = self.clean(x, noise, level.clamp_min(0))
        beta = 1 - a / before
        rest = (1 - a).clamp_min(1e-12)
        mean = before.sqrt() * beta / rest * x0 + (a / before).sqrt() * (1 - before) / rest * x
        moved = mean + (beta * (1 - before) / rest).sqrt() * fresh
        return torch.where(_spread(level, x) < 0, x, moved)

    def jump(self, x: Tensor, noise: Tensor, level: Tensor, to: Tensor) -> Tensor:
        """From ``level`` to ``to`` with the deterministic step of DDIM; positions that are clean already stay."""
        a = self.signal(to, x)
        x0 = self.clean(x, noise, level.clamp_min(0))
        at = self.signal(level.clamp_min(0), x)
        implied = (x - at.sqrt() * x0) / (1 - at).clamp_min(1e-12).sqrt()
        return torch.where(_spread(level, x) < 0, x, a.sqrt() * x0 + (1 - a).sqrt() * implied)

    def grid(self, steps: int) -> list[int]:
        """``steps`` levels from N - 1 down, evenly spaced over N, and -1 at last."""
        return [*(self.levels * (steps - number) // steps - 1 for number in range(steps)), -1]


def _spread(level: Tensor, like: Tensor) -> Tensor:
    return level.view(-1, 1, 1) if level.ndim == 1 else level[..., None]


def noise_loss(network, schedule: Ddpm, batch, level: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, for levels (B,) or (B, T)."""
    x = schedule.noised(batch.actions, noise, level)
    return (network(x, level, batch.obs) - noise).square().mean()
