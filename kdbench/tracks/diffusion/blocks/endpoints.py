"""Pairs of noise and what the teacher makes of it: endpoints of its probability flow, made once for all jobs.

Luhman and Luhman (2021, knowledge distillation in iterative generative models) and Liu et al. (ICLR 2023, reflow) train
one-step generators on such pairs; DMD (Yin et al., CVPR 2024) regularizes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.tracks.diffusion.blocks.stored import StoredLoader, StoredRows, write_rows
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.training.loaders import Order

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

CHUNK = 500
"""Samples that the teacher draws at a time."""


@dataclass
class Pair:
    """Noise and the samples that the teacher's flow leads to from there."""

    noise: Tensor
    """(B, *shape) standard normal."""
    x: Tensor
    """(B, *shape)."""
    cond: Condition

    def __len__(self) -> int:
        return len(self.noise)


class Endpoints:
    """Stored pairs."""

    def __init__(self, rows: StoredRows) -> None:
        self.stored = rows

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Tensor) -> Pair:
        """Pairs of rows (B,) int64."""
        return Pair(self.stored.take("noise", rows), self.stored.take("x", rows), self.stored.condition(rows))

    def loader(self, size: int, generator: torch.Generator) -> StoredLoader[Pair]:
        """Batches of ``size``, in orders from ``generator``."""
        return StoredLoader(self.__getitem__, Order(len(self), min(size, len(self)), generator))


def endpoints(
    task: DiffusionTask, count: int, *, steps: int | None = None, guidance: float | None = None, seed: int = 0
) -> Endpoints:
    """``count`` pairs of the task's teacher, for conditions as the training data have them.

    ``steps`` and ``guidance`` default to those of the official teacher. The pairs depend on the teacher, these numbers
    and ``seed`` alone: the first job makes them, and each is charged for the teacher's evaluations.
    """
    steps = task.spec.evaluation.teacher_steps if steps is None else steps
    w = task.guidance if guidance is None else guidance
    key = {
        "teacher": task.spec.teacher_identity(),
        "count": count,
        "steps": steps,
        "guidance": float(w),
        "seed": seed,
    }
    spent = dict(task.budget.spent)

    def make(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *task.shape, generator=generator)
        cond = task.kind.conditions(count, generator)
        solver, found = task.official_teacher(steps, w), []
        for start in range(0, count, CHUNK):
            part = slice(start, min(count, start + CHUNK))
            found.append(solver.sample(noise[part].to(task.device), cond[part].to(task.device), generator))
        x = torch.cat([part.x.cpu() for part in found])
        write_rows(folder, {"noise": noise, "x": x}, cond, nfe=found[0].nfe)

    rows = StoredRows(task.cache.get("endpoints", key, make), task.device)
    charge(task, spent, len(rows) * rows.facts["nfe"])
    return Endpoints(rows)


def charge(task: DiffusionTask, spent: dict[str, float], queries: float) -> None:
    """Meter what stored outputs have cost, in the job that made them as in those that found them.

    ``spent`` is the budget before, ``queries`` evaluated rows of the teacher.
    """
    task.budget.restore(spent)
    if task.phase == "train":
        task.budget.spend("teacher_queries", queries)
