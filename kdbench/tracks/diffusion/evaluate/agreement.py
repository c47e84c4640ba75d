"""How near samples are to those of a teacher: for the same noise, and as a distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kdbench.tracks.diffusion.evaluate.points import sliced_w2
from kdbench.tracks.diffusion.samplers.base import Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

COUNT = 500
"""Samples: the teacher needs tens of evaluations for each."""


def pair_error(a: Tensor, b: Tensor) -> float:
    """Mean over rows of the root of the mean squared difference of their values."""
    return float((a - b).flatten(1).double().square().mean(1).sqrt().mean())


def agreement(task: DiffusionTask, sampler: Sampler, guidance: float | None = None) -> dict[str, float]:
    """``endpoint_error``: distance to the end of the teacher's trajectory from the same noise (:func:`pair_error`).
    ``teacher_sw2``: sliced Wasserstein distance of the flattened samples to the teacher's.

    The teacher is the official one, with ``guidance`` (default: the task's). In evaluation alone: conditions are those
    of the test split.
    """
    count = min(COUNT, task.spec.evaluation.samples)
    own = task.samples(sampler, count, "test").x
    theirs = task.samples(task.official_teacher(guidance=guidance), count, "test").x
    return {
        "endpoint_error": pair_error(own, theirs),
        "teacher_sw2": sliced_w2(own.flatten(1).cpu(), theirs.flatten(1).cpu()),
    }
