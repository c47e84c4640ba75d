"""Forward processes: x_t = alpha(t) x_0 + sigma(t) noise, clean at t = 0.

``Edm`` is variance exploding (alpha = 1, sigma = t; Karras et al., NeurIPS 2022), ``Flow`` the straight line of
rectified flow (alpha = 1 - t, sigma = t; velocity v = noise - x_0), ``Vp`` variance preserving (Song et al., ICLR
2021). All three are one process seen through a scaling: x_t / alpha is x_0 with noise of level sigma / alpha.

Times are floats or tensors (B,); states are (B, ...).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

Time = Tensor | float
RHO = 7.0
"""Of the grid of Karras et al., equation 5."""


def spread(t: Time, x: Tensor) -> Tensor:
    """``t`` (B,) or a number, in the shape that multiplies ``x`` (B, ...)."""
    values = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return values.view(-1, *[1] * (x.ndim - 1)) if values.ndim else values


def _tensor(t: Time) -> Tensor:
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)  # of no dimension: promotes nothing


class Process(ABC):
    """One forward process; the same methods for all."""

    name: ClassVar[str]
    t_min: float
    """Least time that teachers are trained at."""
    t_max: float
    """Largest time: the prior."""

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Factor of the clean sample."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Factor of the noise."""

    @abstractmethod
    def time(self, level: Time) -> Tensor:
        """The time at which sigma / alpha is ``level``."""

    @abstractmethod
    def training_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(count,) times drawn as teachers of this process are trained."""

    @abstractmethod
    def denoising_weight(self, t: Time) -> Tensor:
        """Weight of the squared error of x_0 at ``t`` in the training of denoisers."""

    @abstractmethod
    def grid(self, steps: int, start: float | None = None) -> Tensor:
        """(steps + 1,) decreasing times from ``start`` (default: the prior) to ``t_min``, and 0 at last."""

    def level(self, t: Time) -> Tensor:
        """Noise to signal, sigma / alpha: the time of the equivalent ``Edm``."""
        return self.sigma(t) / self.alpha(t)

    def _ab(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        return spread(self.alpha(t), x), spread(self.sigma(t), x)

    def noised(self, x0: Tensor, noise: Tensor, t: Time) -> Tensor:
        """x_t of clean samples."""
        a, b = self._ab(t, x0)
        return a * x0 + b * noise

    def x0_from_noise(self, x: Tensor, noise: Tensor, t: Time) -> Tensor:
        """(x - sigma noise) / alpha; where alpha is 0 nothing is known and the result is not finite."""
        a, b = self._ab(t, x)
        return (x - b * noise) / a

    def noise_from_x0(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """(x - alpha x_0) / sigma, for t > 0."""
        a, b = self._ab(t, x)
        return (x - a * x0) / b

    def velocity_from_x0(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """noise - x_0."""
        return self.noise_from_x0(x, x0, t) - x0

    def x0_from_velocity(self, x: Tensor, velocity: Tensor, t: Time) -> Tensor:
        """x_0 where noise - x_0 is ``velocity``: (x - sigma v) / (alpha + sigma)."""
        a, b = self._ab(t, x)
        return (x - b * velocity) / (a + b)

    def score_from_x0(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """Gradient of the log density of x_t where x_0 is its posterior mean: (alpha x_0 - x) / sigma^2, for t > 0."""
        a, b = self._ab(t, x)
        return (a * x0 - x) / b**2

    def jump(self, x: Tensor, x0: Tensor, t: Time, s: Time) -> Tensor:
        """DDIM: from time ``t`` to ``s`` along x_0 and the noise that it implies; s = 0 gives x_0."""
        a, b = self._ab(s, x)
        return a * x0 + b * self.noise_from_x0(x, x0, t)

    def diffuse(self, x: Tensor, noise: Tensor, s: Time, t: Time) -> Tensor:
        """From the state at ``s`` on to the noisier ``t``, with fresh noise for what lies between alone."""
        (a_s, b_s), (a_t, b_t) = self._ab(s, x), self._ab(t, x)
        a = a_t / a_s
        return a * x + (b_t**2 - (a * b_s) ** 2).clamp_min(0).sqrt() * noise

    def prior(self, noise: Tensor, t: Time | None = None) -> Tensor:
        """The state that sampling begins with at ``t`` (default: the prior's time): sigma noise, nothing of x_0."""
        return spread(self.sigma(self.t_max if t is None else t), noise) * noise

    def state(self) -> dict[str, Any]:
        """Name and fields, as :func:`process_from` reads them."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Edm(Process):
    """Variance exploding: times are standard deviations of the noise."""

    sigma_min: float = 0.02
    sigma_max: float = 20.0
    data_std: float = 0.5
    """Standard deviation of the data, of the preconditioning and of the weight."""
    mean: float = -1.2
    """Of ln sigma in training."""
    std: float = 1.2
    name: ClassVar[str] = "edm"

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(_tensor(t))

    def sigma(self, t: Time) -> Tensor:
        return _tensor(t)

    def time(self, level: Time) -> Tensor:
        return _tensor(level)

    def training_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return (self.mean + self.std * torch.randn(count, generator=generator)).exp().clamp(self.t_min, self.t_max)

    def denoising_weight(self, t: Time) -> Tensor:
        t = _tensor(t)
        return (t**2 + self.data_std**2) / (t * self.data_std) ** 2

    def grid(self, steps: int, start: float | None = None) -> Tensor:
        most, least = (self.t_max if start is None else start) ** (1 / RHO), self.t_min ** (1 / RHO)
        if steps == 1:
            return torch.tensor([most**RHO, 0.0])
        times = (most + torch.linspace(0, 1, steps) * (least - most)) ** RHO
        return torch.cat([times, torch.zeros(1)])


@dataclass(frozen=True)
class Flow(Process):
    """The straight line from data (0) to noise (1)."""

    shift: float = 1.0
    """Grids and training times t become shift t / (1 + (shift - 1) t)."""
    mean: float = 0.0
    """Of the logit of the training times."""
    std: float = 1.0
    t_min: float = 0.02
    t_max: float = 1.0
    name: ClassVar[str] = "flow"

    def alpha(self, t: Time) -> Tensor:
        return 1 - _tensor(t)

    def sigma(self, t: Time) -> Tensor:
        return _tensor(t)

    def time(self, level: Time) -> Tensor:
        level = _tensor(level)
        return level / (1 + level)

    def shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def training_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        times = (self.mean + self.std * torch.randn(count, generator=generator)).sigmoid()
        return self.shifted(times).clamp(self.t_min, self.t_max)

    def denoising_weight(self, t: Time) -> Tensor:
        """1 / t^2: the squared error of the velocity."""
        return 1 / _tensor(t) ** 2

    def grid(self, steps: int, start: float | None = None) -> Tensor:
        first = self.t_max if start is None else start
        return self.shifted(torch.linspace(1, 0, steps + 1)) * first


@dataclass(frozen=True)
class Vp(Process):
    """Variance preserving, with a rate that rises linearly from ``beta_min`` to ``beta_max`` over times 0 to 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    name: ClassVar[str] = "vp"

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(_tensor(t)).exp()

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(_tensor(t)))).sqrt()

    def time(self, level: Time) -> Tensor:
        """Root of the quadratic equation for log alpha = -log(1 + level^2) / 2."""
        target = torch.log1p(_tensor(level) ** 2)
        slope = self.beta_max - self.beta_min
        return 2 * target / (self.beta_min + (self.beta_min**2 + 2 * slope * target).sqrt())

    def training_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return self.t_min + (self.t_max - self.t_min) * torch.rand(count, generator=generator)

    def denoising_weight(self, t: Time) -> Tensor:
        """The signal to noise ratio, at most 5 (min-SNR; Hang et al., ICCV 2023)."""
        return self.level(t).pow(-2).clamp_max(5.0)

    def grid(self, steps: int, start: float | None = None) -> Tensor:
        return torch.linspace(self.t_max if start is None else start, 0, steps + 1)


PROCESSES: dict[str, type[Process]] = {kind.name: kind for kind in (Edm, Flow, Vp)}


def process_from(state: dict[str, Any]) -> Process:
    """The process that :meth:`Process.state` describes."""
    fields = dict(state)
    return PROCESSES[fields.pop("name")](**fields)
