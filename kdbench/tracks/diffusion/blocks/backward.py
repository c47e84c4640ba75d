"""Simulated inference: inputs of a few-step generator that come from its own earlier steps.

A step of training sees what the same step of sampling will see, not noised data (Yin et al., NeurIPS 2024, section
4.5): the generator is rolled without gradient along its own times to a step k, and called once more with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Process
from kdbench.tracks.diffusion.samplers.fewstep import Mode, next_state

FINE = 1000
"""Points of the grid that times of a few steps are taken from."""


def student_times(process: Process, steps: int, start: float | None = None) -> list[float]:
    """Decreasing times of a generator of ``steps`` steps: evenly spaced places of a fine grid, from ``start`` on.

    Place 0 is ``start`` (default: the prior's time), place 1 the clean end, which is left out: 1, 3/4, 1/2 and 1/4 for
    four steps on a straight line, 999, 749, 499 and 249 on a grid of a thousand.
    """
    grid = process.grid(FINE, start)
    return [float(grid[number * FINE // steps]) for number in range(steps)]


@dataclass(frozen=True)
class Reached:
    """Where the own steps of a generator have led to; without graph."""

    x: Tensor
    """(B, *shape) states."""
    t: Tensor
    """(B,) their times."""
    step: Tensor
    """(B,) int64: which step of the generator comes next."""


def expert(generator: Denoiser | Sequence[Denoiser], number: int) -> Denoiser:
    """The network of a step: the generator itself, or the one of its experts."""
    return generator[number] if isinstance(generator, Sequence) else generator


@torch.no_grad()
def roll(
    generator: Denoiser | Sequence[Denoiser],
    noise: Tensor,
    cond: Condition,
    times: Sequence[float],
    stop: int | Tensor,
    rng: torch.Generator,
    *,
    mode: Mode = "renoise",
    eta: float = 0.0,
) -> Reached:
    """Walk the first ``stop`` steps of the generator's own sampling; ``stop`` 0 is the prior.

    ``noise`` (B, *shape) is standard normal, ``times`` are those of the steps in falling order, ``stop`` is one number
    for all or (B,) int64. Modes are those of :func:`~kdbench.tracks.diffusion.samplers.fewstep.next_state`; ``rng``
    gives the fresh noise of a step. Raises ``ValueError`` for a stop that is no step.
    """
    stops = torch.as_tensor(stop, device=noise.device).expand(len(noise))
    last = stop if isinstance(stop, int) else int(stops.max())
    if not 0 <= last < len(times) or int(stops.min()) < 0:
        raise ValueError(f"a generator of {len(times)} steps cannot stop at {stop}")
    first = expert(generator, 0)
    process = first.process
    x = process.prior(noise, times[0])
    reached = x
    for number in range(last):
        x0 = expert(generator, number)(x, times[number], cond)
        fresh = None if mode == "jump" else noise_like(x, rng)
        x = next_state(process, x, x0, times[number], times[number + 1], mode, fresh, eta)
        here = (stops > number).view(-1, *[1] * (x.ndim - 1))
        reached = torch.where(here, x, reached)
    return Reached(reached, torch.tensor(times, dtype=x.dtype, device=x.device)[stops], stops)


def generated(
    generator: Denoiser | Sequence[Denoiser],
    noise: Tensor,
    cond: Condition,
    times: Sequence[float],
    rng: torch.Generator,
    *,
    stop: int | Tensor | None = None,
    mode: Mode = "renoise",
    eta: float = 0.0,
) -> tuple[Tensor, Reached]:
    """x_0 (B, *shape) of one differentiable call at a step that simulated inference leads to, and its input.

    ``stop`` defaults to one step for the whole batch, drawn uniformly. Where ``stop`` is (B,), there is one network for
    all steps.
    """
    if stop is None:
        stop = int(torch.randint(len(times), (), generator=rng)) if len(times) > 1 else 0
    reached = roll(generator, noise, cond, times, stop, rng, mode=mode, eta=eta)
    network = expert(generator, stop) if isinstance(stop, int) else expert(generator, 0)
    return network(reached.x, reached.t, cond), reached
