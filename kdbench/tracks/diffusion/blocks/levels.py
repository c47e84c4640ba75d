"""Noise levels at which distributions are compared, and the noise for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdbench.tracks.diffusion.processes import Process, Time


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in shape, type and place of ``x``; ``generator`` is one of the CPU."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


@dataclass(frozen=True)
class Levels:
    """Times drawn uniformly over the places of a fine grid of the process (of Karras for ``Edm``, even for the others).

    A place is a share of the grid, 0 the cleanest and 1 the noisiest: DMD2 compares scores within [0.02, 0.98] of 1000
    points and trains its critic on all of them (Yin et al., NeurIPS 2024; released code). Raises ``ValueError`` for
    places that are not 0 <= least < most <= 1.
    """

    process: Process
    least: float = 0.0
    most: float = 1.0
    points: int = 1000
    times: Tensor = field(init=False, repr=False, compare=False)
    """(points,) times of the places, rising, within the range that teachers are trained on."""

    def __post_init__(self) -> None:
        if not 0 <= self.least < self.most <= 1:
            raise ValueError(f"levels lie between 0 and 1 in rising order, not {self.least} and {self.most}")
        times = self.process.grid(self.points)[:-1].flip(0).float()
        object.__setattr__(self, "times", times.clamp(self.process.t_min, self.process.t_max))

    def draw(
        self, count: int, generator: torch.Generator, *, above: Time | None = None, below: Time | None = None
    ) -> Tensor:
        """(count,) times on the CPU.

        ``above`` and ``below``, numbers or (count,), restrict them to noisier and to cleaner ones than these; the
        nearest place within the range is taken where that leaves none.
        """
        first, last = int(self.least * self.points), min(int(self.most * self.points) + 1, self.points)
        low, high = torch.full((count,), first), torch.full((count,), last)
        if above is not None:
            low = self._place(above, count, right=True).clamp(first, last - 1)
        if below is not None:
            high = self._place(below, count, right=False).clamp(first + 1, last)
        high = torch.maximum(high, low + 1)
        steps = (torch.rand(count, generator=generator, dtype=torch.float64) * (high - low)).long()
        return self.times[torch.minimum(low + steps, high - 1)]

    def _place(self, time: Time, count: int, *, right: bool) -> Tensor:
        values = torch.as_tensor(time, dtype=self.times.dtype, device="cpu").expand(count).contiguous()
        return torch.searchsorted(self.times, values, right=right)
