"""Preconditioned score policies: the diffusion of Karras et al. (NeurIPS 2022) over chunks of actions.

D(x, s) = c_skip x + c_out F(c_in x, c_noise), with c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2),
c_in = 1 / sqrt(s^2 + d^2), c_noise = ln(s) / 4 and d the standard deviation of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """The preconditioning of a network, and the levels that it is trained and sampled at."""

    data_std: float = 0.5
    least: float = 0.001
    most: float = 80.0

    def denoised(self, network: Any, x: Tensor, sigma: Tensor, obs: Any, **options: Any) -> Tensor:
        """D of chunks (B, T, A) at levels (B,)."""
        s, d = sigma.view(-1, 1, 1), self.data_std
        norm = (s**2 + d**2).sqrt()
        inner = network(x / norm, sigma.log() / 4, obs, **options)
        return d**2 / norm**2 * x + s * d / norm * inner

    def loss(self, network: Any, x0: Tensor, sigma: Tensor, noise: Tensor, obs: Any, **options: Any) -> Tensor:
        """(B,) squared errors of D with the weight (s^2 + d^2) / (s d)^2, mean over a chunk."""
        found = self.denoised(network, x0 + sigma.view(-1, 1, 1) * noise, sigma, obs, **options)
        weight = (sigma**2 + self.data_std**2) / (sigma * self.data_std) ** 2
        return weight * (found - x0).square().flatten(1).mean(1)

    def training_levels(self, count: int, generator: torch.Generator, scale: float = 0.5) -> Tensor:
        """(count,) levels of the log-logistic density around ``data_std``, cut to the range."""
        centre = math.log(self.data_std)
        ends = [1 / (1 + math.exp(-(math.log(end) - centre) / scale)) for end in (self.least, self.most)]
        u = torch.rand(count, generator=generator, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0]
        return (u.logit() * scale + centre).exp().float()

    def exponential(self, steps: int) -> Tensor:
        """(steps + 1,) levels from ``most`` to ``least``, evenly spaced in their logarithm, and 0 at last."""
        inner = torch.linspace(math.log(self.most), math.log(self.least), steps).exp()
        return torch.cat([inner, torch.zeros(1)])


def ddim(x: Tensor, denoised: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """From level ``here`` to ``there`` (numbers), along the noise that ``denoised`` implies; 0 gives ``denoised``."""
    return denoised + there / here * (x - denoised)
