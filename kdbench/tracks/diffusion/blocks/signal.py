"""The signal of a deterministic trajectory: what is left of a state when its own first noise is taken away.

A DDIM trajectory that began with the noise e keeps it: x_t = alpha_t y_t + sigma_t e, where the signal y_t is a blurred
sample at first and the sample itself at last. With D the teacher's clean prediction, a step from t to s < t is

    y_s = (1 - k) D(alpha_t y_t + sigma_t e, t) + k y_t,    k = level(s) / level(t),

which is the DDIM step of x, exactly (Gu et al., 2023, arXiv 2306.05544, where k = e^(lambda_s - lambda_t)). A student
that reads e and t alone can thus learn y_t from itself, without any image: the boundary is y_T = D(sigma_T e, T).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from kdbench.tracks.diffusion.processes import Process, Time, spread

Predict = Callable[[Tensor, Tensor], Tensor]
"""x_0 (B, *shape) predicted from states (B, *shape) at times (B,)."""
Signal = Callable[[Tensor, Tensor], Tensor]
"""y_t (B, *shape) from noise (B, *shape) and times (B,)."""


def signal_grid(process: Process, steps: int) -> Tensor:
    """(steps + 1,) decreasing times from the prior's to the least that teachers know, spaced as the process's grid."""
    grid = process.grid(steps + 1)[:-1].double()
    scale = (process.t_max - process.t_min) / (process.t_max - float(grid[-1]))
    return (process.t_max - (process.t_max - grid) * scale).clamp_min(process.t_min).to(torch.get_default_dtype())


def signal_step(process: Process, y: Tensor, x0: Tensor, t: Time, s: Time) -> Tensor:
    """(B, *shape) y_s from y_t and the clean sample predicted at ``t``; ``y`` does not matter where alpha(t) is 0."""
    keep = spread(process.level(s) / process.level(t), y)
    return (1 - keep) * x0 + keep * y


@torch.no_grad()
def signal_target(
    teacher: Predict, process: Process, y: Tensor, noise: Tensor, t: Tensor, s: Tensor, *, heun: bool = False
) -> Tensor:
    """(B, *shape) y_s that the teacher makes of y_t, for ``noise`` (B, *shape) and times (B,) with s < t.

    ``heun`` averages the teacher's predictions at both ends: second order, twice the queries.
    """
    x0 = teacher(process.noised(y, noise, t), t)
    reached = signal_step(process, y, x0, t, s)
    if heun:
        second = teacher(process.noised(reached, noise, s), s)
        reached = signal_step(process, y, (x0 + second) / 2, t, s)
    return reached


@torch.no_grad()
def boundary(teacher: Predict, process: Process, noise: Tensor) -> Tensor:
    """(B, *shape) y_T: the teacher's prediction from the prior's state."""
    t = torch.full((len(noise),), process.t_max, dtype=noise.dtype, device=noise.device)
    return teacher(process.prior(noise), t)


def bootstrap_loss(
    student: Signal,
    teacher: Predict,
    process: Process,
    noise: Tensor,
    times: Tensor,
    place: Tensor,
    stride: Tensor,
    *,
    target: Signal | None = None,
    heun: bool = False,
) -> Tensor:
    """(B,) squared errors ||g(e, s) - y_s||^2 / delta^2, means over a sample's values.

    y_s is the teacher's step from the student's own signal at t (or from that of ``target``); gradients reach g(e, s)
    alone. ``times`` (N + 1,) is a decreasing grid, ``place`` (B,) int64 where t stands in it, ``stride`` (B,) how many
    places on s is; delta is ``stride`` / N.
    """
    t, s = times[place], times[place + stride]
    with torch.no_grad():
        y = (student if target is None else target)(noise, t)
        goal = signal_target(teacher, process, y, noise, t, s, heun=heun)
    error = (student(noise, s) - goal).pow(2).flatten(1).mean(1)
    return error / (stride.to(error) / (len(times) - 1)) ** 2


@torch.no_grad()
def signals(teacher: Predict, process: Process, noise: Tensor, times: Tensor, *, heun: bool = False) -> list[Tensor]:
    """y_t (B, *shape) at each of ``times`` (N + 1,), by the teacher alone: the trajectory that students learn."""
    y = boundary(teacher, process, noise)
    found = [y]
    for t, s in pairwise(times):
        ends = [time.to(noise).expand(len(noise)) for time in (t, s)]
        y = signal_target(teacher, process, y, noise, *ends, heun=heun)
        found.append(y)
    return found
