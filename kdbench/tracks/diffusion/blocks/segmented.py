"""Trajectory segmented consistency distillation (Ren et al., NeurIPS 2024, section 3.1).

Numbers of steps and of segments are the same thing: a model that jumps over n segments, one after the other, samples in
n steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.blocks.anysteps import StepAware
from kdbench.tracks.diffusion.blocks.consistency import Metric, Segments, consistency_loss, implied_x0
from kdbench.tracks.diffusion.blocks.ema import HalfLife
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.networks.base import guided

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


def stage_counts(first: int) -> list[int]:
    """Segments of the stages: ``first``, halved down to 1. Raises ``UsageError`` unless it is a power of 2."""
    if first < 1 or first & (first - 1):
        raise UsageError(f"stages halve the number of segments down to 1: begin with a power of 2, not with {first}")
    return [first >> halvings for halvings in range(first.bit_length())]


class Segmented:
    """The loss of a stage, on data that are noised to the times of a grid."""

    def __init__(
        self,
        task: DiffusionTask,
        student: StepAware,
        counts: Sequence[int],
        *,
        grid: int,
        name: str,
        guidance: float = 1.0,
        half_life: float = 1000.0,
        end: Literal["random", "bound"] = "random",
        metric: Metric = "huber",
        c: float = 1e-3,
        own: float = 0.5,
    ) -> None:
        """``counts`` are the numbers of segments that batches are trained at: the last one is that of the stage and has
        a share ``own`` of the batches, the others, of stages before, have equal parts of the rest.

        The target is an average of the student's weights with a half-life in images that begins here. ``name`` is that
        of the stream of noise and times.
        """
        self.task, self.teacher, self.process = task, task.teacher(), task.process
        self.cuts = {count: Segments(task.process.grid(grid), count) for count in counts}
        self.counts, self.own = list(counts), own
        self.target = HalfLife(student, half_life, ramp=None)
        self.guidance, self.end, self.metric, self.c = guidance, end, metric, c
        self.rng = task.generator(name)

    def count(self) -> int:
        """Segments of the next batch."""
        if len(self.counts) == 1 or float(torch.rand((), generator=self.rng)) < self.own:
            return self.counts[-1]
        return self.counts[int(torch.randint(len(self.counts) - 1, (), generator=self.rng))]

    def __call__(self, model: StepAware, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scalar loss, and the student's and the target's x_0 (B, *shape): along which their jumps lead from one state.

        Both jumps are from data noised to a random time to a random later one of the same of ``count`` segments.
        """
        number, rng, x0 = self.count(), self.rng, batch.x
        steps = self.cuts[number].draw(len(batch), rng, self.end).to(x0.device)
        x = self.process.noised(x0, noise_like(x0, rng), steps.t)
        losses, guess, goal = consistency_loss(
            lambda x, t: model(x, t, batch.cond, steps=number),
            lambda x, t: self.target.network(x, t, batch.cond, steps=number),
            lambda x, t: guided(self.teacher, x, t, batch.cond, self.guidance),
            self.process,
            x,
            steps,
            metric=self.metric,
            c=self.c,
        )
        student, target = (implied_x0(self.process, x, steps.t, jumped, steps.end) for jumped in (guess, goal))
        return losses.mean(), student, target

    def update(self, step: int) -> None:
        """Let the target follow; after each optimizer step."""
        self.target.update(self.task.spec.recipe.batch_size)
