"""Flow maps: where a trajectory of the teacher is after a while, in one call.

All of this lives on the straight line x_t = (1 - t) x_0 + t n, whatever the teacher's own process, which is the same up
to a scaling. *Data-free* (Tong et al., 2025, arXiv 2511.19428): f(z, d) = z + d F(z, d) starts at noise z and has
travelled for d; with u the teacher's velocity towards the data, df/dd = u(f, 1 - d) is

    F + d dF/dd = u(z + d F, 1 - d),

whose derivative is in d alone, and no data are needed. A second network v learns the velocity of the student's own
noised samples, and u - v corrects what the first equation accumulates in error (the direction of distribution
matching). *From data* (Geng et al., 2025, arXiv 2505.13447): the mean velocity m(x, t, r) from t down to r obeys

    m = v - (t - r) dm/dt,    dm/dt along dx/dt = v (velocity towards the noise),

at states x_t of noised data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Flow, Process, Time, spread

FLOOR = 1e-3
"""Added to the denominators of weights."""


# --- the straight line ------------------------------------------------------------------------------------------------


def line_limits(process: Process) -> tuple[float, float]:
    """Least and largest time on the line that a process covers: level / (1 + level) at its ends."""
    if isinstance(process, Flow):
        return process.t_min, process.t_max
    ends = [float(process.level(t)) for t in (process.t_min, process.t_max)]
    return ends[0] / (1 + ends[0]), ends[1] / (1 + ends[1])


def own_state(process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """State and time (B,) of the process for states ``x`` (B, *shape) on the line at ``t`` (B,) within its limits.

    Beyond the noisiest level of the process the state is scaled so that its noise has that level; what this shrinks of
    x_0 is nothing against the noise.
    """
    if isinstance(process, Flow):
        return x, t
    limit = line_limits(process)[1]
    inside = t.clamp(max=limit)
    level = inside / (1 - inside)
    own = process.time(level)
    return x * spread(process.alpha(own).to(x) * torch.where(t > limit, level / t, 1 / (1 - inside)), x), own


def line_velocity(denoiser: Denoiser, x: Tensor, t: Tensor, cond: Condition, w: Time = 1.0) -> Tensor:
    """(B, *shape) velocity noise - x_0 on the line at ``t`` (B,), of any denoiser, guided by ``w``.

    Times below the least that the denoiser was trained at count as that.
    """
    least, _ = line_limits(denoiser.process)
    t = t.clamp(min=least)
    own, time = own_state(denoiser.process, x, t)
    return (x - guided(denoiser, own, time, cond, w)) / spread(t, x)


def on_line(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(B, *shape) (1 - t) x_0 + t noise."""
    return x0 + spread(t, x0) * (noise - x0)


def logit_normal(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(count,) times in (0, 1) whose logits are normal."""
    return (mean + std * torch.randn(count, generator=generator)).sigmoid()


# --- maps from noise --------------------------------------------------------------------------------------------------


Arguments = tuple[Tensor, ...]


def along(function: Callable[..., Tensor], at: Arguments, tangent: Arguments) -> tuple[Tensor, Tensor]:
    """``function(*at)`` and its derivative along ``tangent``, by forward differentiation.

    The value keeps its graph to parameters; the derivative is detached. Attention is computed in its plain form, the
    only one that has a forward derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(function, at, tangent)
    return value, derivative.detach()


def decay(residual: Tensor, power: float, floor: float = FLOOR) -> Tensor:
    """(B,) 1 / (mean of squares + ``floor``)^``power``, means over a sample's values; no gradient."""
    return (residual.detach().pow(2).flatten(1).mean(1) + floor) ** -power


def map_residual(value: Tensor, slope: Tensor, velocity: Tensor, d: Tensor) -> Tensor:
    """(B, *shape) D = F + d dF/dd - u: how the map's own velocity differs from the teacher's. 0 on the true map."""
    return value + spread(d, value) * slope - velocity


def prediction_loss(value: Tensor, residual: Tensor, power: float = 1.0, floor: float = FLOOR) -> Tensor:
    """Scalar: weighted ||F - stopgrad(u - d dF/dd)||^2, the target being F - D; weight :func:`decay` of D."""
    goal = (value - residual).detach()
    return (decay(residual, power, floor) * (value - goal).pow(2).flatten(1).mean(1)).mean()


def rms(x: Tensor) -> Tensor:
    """Mean over samples of the root of the mean square of their values; no gradient."""
    return x.detach().pow(2).flatten(1).mean(1).sqrt().mean()


def correction_loss(value: Tensor, own: Tensor, teacher: Tensor, size: Tensor, floor: float = FLOOR) -> Tensor:
    """Scalar mean of F(z, 1) stopgrad(own - teacher) / (rms(own - teacher) + ``floor``) times ``size``.

    ``own`` and ``teacher`` (B, *shape) are velocities towards the data of the student's noised samples: of the network
    that learns them and of the teacher. Descent moves samples along teacher - own. ``size`` is what the gradient is
    scaled to.
    """
    direction = (own - teacher).detach()
    return (value * direction).flatten(1).mean(1).mean() * (size.detach() / (rms(direction) + floor))


# --- mean velocities on data ------------------------------------------------------------------------------------------


def mean_velocity_loss(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    r: Tensor,
    velocity: Tensor,
    power: float = 1.0,
    floor: float = FLOOR,
) -> tuple[Tensor, Tensor]:
    """Scalar weighted ||m - stopgrad(v - (t - r) dm/dt)||^2 and the residual (B, *shape).

    ``network(x, t, r)`` is the mean velocity, ``velocity`` (B, *shape) the teacher's towards the noise, at states ``x``
    of times ``t`` >= ``r`` (B,).
    """
    ends = (velocity, torch.ones_like(t), torch.zeros_like(r))
    value, slope = along(network, (x, t, r), ends)
    residual = value + spread(t - r, value) * slope - velocity
    return prediction_loss(value, residual, power, floor), residual.detach()
