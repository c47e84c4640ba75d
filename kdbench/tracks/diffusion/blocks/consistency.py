"""Consistency functions: jumps along the teacher's probability flow that agree wherever on it they start.

f(x, t, s) jumps from the state x at time t to the time s along the predicted clean sample (DDIM). It learns from its
own average of weights f': with one step of the teacher from t to the next time t',

    distance(f(x_t, t, s), stopgrad f'(teacher(x_t, t -> t'), t', s)),    t > t' >= s.

Song et al., ICML 2023 (consistency models: s = 0); Kim et al., ICLR 2024 (any s); Ren et al., NeurIPS 2024 (segments:
the times are cut into equal parts, and s stays in the part that t' lies in).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.processes import Process, spread

Predict = Callable[[Tensor, Tensor], Tensor]
"""x_0 (B, *shape) predicted from states (B, *shape) at times (B,)."""
Metric = Literal["mse", "huber"]


def jump(predict: Predict, process: Process, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """f(x, t, s): (B, *shape) states at times ``s`` (B,), from ``x`` at ``t`` (B,).

    Where ``s`` is not below ``t`` this is ``x`` itself, whatever is predicted: the boundary condition.
    """
    moves = t > s
    times = torch.where(moves, t, torch.full_like(t, process.t_max))  # others may stand at 0, which no network knows
    moved = process.jump(x, predict(x, times), times, s)
    return torch.where(spread(moves, x).bool(), moved, x)


def distance(a: Tensor, b: Tensor, metric: Metric = "huber", c: float = 1e-3) -> Tensor:
    """(B,) mean over a sample's values: squares, or pseudo-Huber sqrt(d^2 + c^2) - c, like |d| above ``c``."""
    squares = (a - b).flatten(1) ** 2
    return (squares if metric == "mse" else (squares + c**2).sqrt() - c).mean(1)


@dataclass(frozen=True)
class Steps:
    """What a batch is trained at, (B,) each: ``t`` > ``following`` >= ``end``."""

    t: Tensor
    """Where the state is."""
    following: Tensor
    """Where the teacher goes."""
    end: Tensor
    """Where both jumps go (s)."""

    def to(self, device: torch.device | str) -> Steps:
        return Steps(self.t.to(device), self.following.to(device), self.end.to(device))


class Segments:
    """Steps of a grid of times that is cut into segments of equally many steps.

    Grids are even in the time that samplers step in: evenly spaced for ``Flow`` and ``Vp``, Karras' for ``Edm``.
    """

    def __init__(self, times: Tensor, segments: int) -> None:
        """``times`` (N + 1,), decreasing to 0. Raises ``UsageError`` where N steps cannot be cut so."""
        steps = len(times) - 1
        if segments < 1 or steps % segments:
            raise UsageError(f"{steps} steps cannot be cut into {segments} equal segments; choose a divisor of {steps}")
        self.times, self.segments = times, segments
        self.length = steps // segments
        """Steps of a segment."""

    @property
    def bounds(self) -> Tensor:
        """(segments + 1,) times at which segments begin and end: those of a sampler with as many steps."""
        return self.times[:: self.length]

    def bound(self, step: Tensor) -> Tensor:
        """(B,) place in ``times`` of the lower bound of the segment that steps (B,), counted from 0, lie in."""
        return (step // self.length + 1) * self.length

    def draw(self, count: int, generator: torch.Generator, end: Literal["random", "bound"] = "random") -> Steps:
        """``count`` random steps; their ends are any later time of the segment, or its lower bound."""
        steps = len(self.times) - 1
        step = torch.randint(steps, (count,), generator=generator)
        last = self.bound(step)
        place = last
        if end == "random":
            place = step + 1 + (torch.rand(count, generator=generator) * (last - step)).long()
        return Steps(self.times[step], self.times[step + 1], self.times[place])


def consistency_loss(
    student: Predict,
    target: Predict,
    teacher: Predict,
    process: Process,
    x: Tensor,
    steps: Steps,
    *,
    metric: Metric = "huber",
    c: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) distances, the student's jumps and their targets (B, *shape), at states ``x`` (B, *shape) of times ``t``.

    The teacher makes one Euler step, in which it may be guided. Gradients reach ``student`` alone.
    """
    with torch.no_grad():
        reached = process.jump(x, teacher(x, steps.t), steps.t, steps.following)
        goal = jump(target, process, reached, steps.following, steps.end)
    guess = jump(student, process, x, steps.t, steps.end)
    return distance(guess, goal, metric, c), guess, goal


def implied_x0(process: Process, x: Tensor, t: Tensor, reached: Tensor, s: Tensor) -> Tensor:
    """(B, *shape) the clean sample along which one jump leads from ``x`` at ``t`` to ``reached`` at ``s`` < ``t``.

    The target of progressive distillation (Salimans and Ho, ICLR 2022, section 3 and appendix G).
    """
    alpha_t, alpha_s = spread(process.alpha(t), x), spread(process.alpha(s), x)
    ratio = spread(process.sigma(s) / process.sigma(t), x)
    return (reached - ratio * x) / (alpha_s - ratio * alpha_t)


@torch.no_grad()
def two_steps(teacher: Predict, process: Process, x: Tensor, steps: Steps) -> Tensor:
    """(B, *shape) where two Euler steps lead, from ``t`` to ``following`` and on to ``end``."""
    middle = process.jump(x, teacher(x, steps.t), steps.t, steps.following)
    return process.jump(middle, teacher(middle, steps.following), steps.following, steps.end)


def draw_pairs(times: Tensor, count: int, generator: torch.Generator) -> Steps:
    """``count`` random pairs of steps of a grid of an even number of steps, ``times`` (2 n + 1,)."""
    first = 2 * torch.randint((len(times) - 1) // 2, (count,), generator=generator)
    return Steps(times[first], times[first + 1], times[first + 2])
