"""Distribution matching in phases: each brings samples from one noise level to the next, with an expert of its own.

Phase k moves x at t_{k-1} to x at t_k, never to clean samples but in the last, and compares distributions at all levels
noisier than t_k (Fan et al., 2025, arXiv 2510.27684). Experts before it are frozen. A phase of several steps is trained
at a random one, from which it goes to the end of the phase at once (stochastic gradient truncation); one phase for all
steps is the few-step form of DMD with that truncation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.backward import roll
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.dmd import dmd_gradient, gradient_norm, pulled
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.subinterval import Target, empirical_x0, subinterval_loss
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.samplers.fewstep import Mode, next_state

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

log = logging.getLogger(__name__)

Range = Literal["noisier", "own"]
POINTS, QUERIES = 4096, 512
"""Samples that a critic is checked with, and those that it is asked about."""


@dataclass(frozen=True)
class Phase:
    """Steps of one expert."""

    first: int
    """Number of its first step, from 0."""
    count: int
    """Steps."""
    start: float
    """Time of the first one."""
    end: float
    """Time that the phase leads to; 0 in the last."""


def phases_of(times: Sequence[float], count: int) -> list[Phase]:
    """``count`` phases of equally many steps at ``times``. Raises ``UsageError`` where that is not possible."""
    steps = len(times)
    if count < 1 or steps % count:
        raise UsageError(f"{steps} steps cannot be cut into {count} equal phases; choose a divisor of {steps}")
    size, ends = steps // count, [*times, 0.0]
    return [Phase(first, size, ends[first], ends[first + size]) for first in range(0, steps, size)]


def affordable(steps: int, count: int, left: float) -> int:
    """``count`` phases of a generator of ``steps`` steps, or as many as have two updates each (of critic and expert) in
    a budget of ``left``; at least 1. Says so where it is fewer.
    """
    fewer = next((n for n in range(count, 0, -1) if steps % n == 0 and left >= 2 * n), 1)
    if steps % count == 0 and fewer < count:
        log.warning("%g steps are too few for %d phases: there are %d", left, count, fewer)
        return fewer
    return count


class PhaseMatching:
    """Losses of the expert of a phase and its critic, for :func:`~kdbench.tracks.diffusion.blocks.turns.alternate`.

    The critic learns E[x_0 | x_t] of the expert's samples at the phase's end, from levels noisier than that; the expert
    is moved by the difference of critic and teacher there, normalized as in DMD.
    """

    def __init__(
        self,
        task: DiffusionTask,
        experts: Sequence[Denoiser],
        expert: Denoiser,
        critic: Critic,
        phase: Phase,
        times: Sequence[float],
        *,
        guidance: float = 1.0,
        mode: Mode = "jump",
        target: Target = "corrected",
        levels: Range = "noisier",
        least: float = 0.02,
        most: float = 0.98,
        notes: Notes | None = None,
    ) -> None:
        """``experts`` (one for each step before the phase) are frozen. ``levels``: all that are noisier than the
        phase's end, or those of the phase alone; ``least`` and ``most`` are places of the grid for the expert's loss.
        """
        self.experts, self.expert, self.critic, self.phase = list(experts), expert, critic, phase
        self.times, self.mode, self.target = list(times), mode, target
        self.teacher, self.guidance, self.notes = task.teacher(), guidance, notes
        self.process = task.process
        self.below = phase.start if levels == "own" else None
        self.matched, self.learned = Levels(task.process, least, most), Levels(task.process)
        self.critic_rng = task.generator(f"critic/{phase.first}")
        self.rng = task.generator(f"expert/{phase.first}")

    def sample(self, model: Denoiser, draw: Draw, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """States (B, *shape) at the phase's end after one differentiable step, and the x_0 that it goes along."""
        phase = self.phase
        stop = phase.first + torch.randint(phase.count, (len(draw),), generator=rng).to(draw.noise.device)
        steps = [*self.experts, *[model] * phase.count]
        reached = roll(steps, draw.noise, draw.cond, self.times, stop, rng, mode=self.mode)
        x0 = model(reached.x, reached.t, draw.cond)
        if phase.end == 0:
            return x0, x0
        fresh = None if self.mode == "jump" else noise_like(x0, rng)
        return next_state(self.process, reached.x, x0, reached.t, phase.end, self.mode, fresh), x0

    def _levels(self, levels: Levels, count: int, rng: torch.Generator) -> Tensor:
        return levels.draw(count, rng, above=self.phase.end, below=self.below)

    def critic_loss(self, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The critic's, on samples that are made for it without gradient."""
        with torch.no_grad():
            x, _ = self.sample(self.expert, draw, self.critic_rng)
        t = self._levels(self.learned, len(x), self.critic_rng).to(x)
        noise = noise_like(x, self.critic_rng)
        network = self.critic.network
        return {"score": subinterval_loss(network, x, draw.cond, self.phase.end, t, noise, target=self.target)}

    def generator_loss(self, model: Denoiser, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The expert's, on one differentiable step."""
        x, x0 = self.sample(model, draw, self.rng)
        t = self._levels(self.matched, len(x), self.rng).to(x)
        with torch.no_grad():
            noised = self.process.diffuse(x, noise_like(x, self.rng), self.phase.end, t)
            wanted = guided(self.teacher, noised, t, draw.cond, self.guidance)
            found = self.critic.network(noised, t, draw.cond)
        if self.notes is not None:
            self.notes.add(gap=gradient_norm(found - wanted))
        return {"dmd": pulled(x, dmd_gradient(x0, wanted, found))}

    @torch.no_grad()
    def critic_bias(self, task: DiffusionTask) -> float:
        """Mean distance of the critic's velocity on the straight line to that of the expert's samples.

        The latter is the closed form for known samples of each class (:func:`empirical_x0`), others than those that
        both are asked about. For points in the plane: images would need more samples than there are.
        """
        rng = task.generator(f"bias/{self.phase.first}")

        def made(count: int) -> tuple[Tensor, Condition]:
            cond = task.kind.conditions(count, rng).to(task.device)
            draw = Draw(torch.randn(count, *task.shape, generator=rng).to(task.device), cond)
            return self.sample(self.expert, draw, rng)[0], cond

        samples, classes = made(POINTS)
        x, cond = made(QUERIES)
        # nearer to the end of the phase the closed form sees single samples
        t = self.process.time(1.2 * self.process.level(self.phase.end) + 0.3 + torch.rand(len(x), generator=rng)).to(x)
        noised = self.process.diffuse(x, noise_like(x, rng), self.phase.end, t)
        same = None
        if cond.tokens is not None and classes.tokens is not None:
            same = (cond.tokens[:, None] == classes.tokens).all(-1)
        error = self.critic.network(noised, t, cond) - empirical_x0(
            self.process, samples, noised, self.phase.end, t, same
        )
        level = self.process.level(t).to(x)
        return float((error.flatten(1).norm(dim=1) * (1 + level) / level).mean())
