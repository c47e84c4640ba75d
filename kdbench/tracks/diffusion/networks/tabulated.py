"""The forward process of pretrained models: variance preserving, with a table of noise in place of a formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.networks.base import NetDenoiser
from kdbench.tracks.diffusion.processes import PROCESSES, Process, Time, _tensor, spread


@dataclass(frozen=True)
class Tabulated(Process):
    """x_t = sqrt(a_k) x_0 + sqrt(1 - a_k) noise at step k of N, which is the time t = (k + 1) / N; 0 is clean.

    Between steps the logarithm of a is interpolated linearly, from log 1 at time 0.
    """

    table: tuple[float, ...]
    """(N,) decreasing products of alphas (``alphas_cumprod`` of a scheduler), in (0, 1) but for the last, which may be
    0 (zero terminal signal)."""
    name: ClassVar[str] = "tabulated"

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip((1.0, *self.table), self.table, strict=False))
        if not self.table or not falling or self.table[-1] < 0:
            raise UsageError("a table of noise has products of alphas that fall from below 1 to 0 at least")

    @property
    def steps(self) -> int:
        """N."""
        return len(self.table)

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0

    @cached_property
    def _logs(self) -> Tensor:
        """(N + 1,) float64 log a; a signal of zero is one of 1e-40, which is 0 in all that follows in float32."""
        return torch.tensor((1.0, *self.table), dtype=torch.float64).clamp_min(1e-40).log()

    def _log(self, t: Tensor) -> Tensor:
        logs = self._logs.to(t.device)
        place = t.double().clamp(0, 1) * self.steps
        below = place.floor().long().clamp_max(self.steps - 1)
        return torch.lerp(logs[below], logs[below + 1], place - below)

    def alpha(self, t: Time) -> Tensor:
        t = _tensor(t)
        return (self._log(t) / 2).exp().to(t.dtype)

    def sigma(self, t: Time) -> Tensor:
        t = _tensor(t)
        return (-torch.expm1(self._log(t))).sqrt().to(t.dtype)

    def time(self, level: Time) -> Tensor:
        level = _tensor(level)
        wanted = torch.log1p(level.double() ** 2).neg()
        logs = self._logs.to(level.device)
        above = torch.searchsorted(-logs, -wanted).clamp(1, self.steps)
        share = (logs[above - 1] - wanted) / (logs[above - 1] - logs[above])
        return ((above - 1 + share) / self.steps).clamp(0, 1).to(level.dtype)

    def step(self, t: Tensor) -> Tensor:
        """The step k of a time, as the network counts: a number from 0 to N - 1, between two steps a broken one.

        Times closer to 0 than the first step are called at that step.
        """
        return (t * self.steps - 1).clamp_min(0)

    def training_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return (torch.randint(self.steps, (count,), generator=generator) + 1) / self.steps

    def denoising_weight(self, t: Time) -> Tensor:
        """The signal to noise ratio, at most 5, as of ``Vp``."""
        return self.level(t).pow(-2).clamp_max(5.0)

    def grid(self, steps: int, start: float | None = None) -> Tensor:
        return torch.linspace(1.0 if start is None else start, 0, steps + 1)


PROCESSES[Tabulated.name] = Tabulated

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What raw networks of this process may give: the noise, alpha noise - sigma x_0 (Salimans and Ho, ICLR 2022), x_0."""


class TabulatedDenoiser(NetDenoiser):
    """A raw network that is called with the step of the table."""

    process: Tabulated
    prediction: str = "epsilon"
    """One of :data:`PREDICTIONS`."""

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.process.step(t)

    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "sample":
            return out
        if self.prediction == "epsilon":
            return self.process.x0_from_noise(x, out, t)
        return spread(self.process.alpha(t), x) * x - spread(self.process.sigma(t), x) * out


def table_of(scheduler: Any) -> Tabulated:
    """The process of a scheduler of diffusers that has a table of noise."""
    return Tabulated(tuple(scheduler.alphas_cumprod.double().tolist()))
