"""States on trajectories of the guided teacher, with what it predicts there: made once for all jobs, on disk.

A student that replaces guidance meets the states of guided sampling, which noised data are not (Jensen and Sadat, TMLR
2025, section 4.3). Every evaluation of the guided teacher along its own sampling is kept: state, time, prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.endpoints import CHUNK, charge
from kdbench.tracks.diffusion.blocks.stored import StoredLoader, StoredRows, write_rows
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, Features, guided
from kdbench.tracks.diffusion.processes import Process, spread
from kdbench.tracks.diffusion.samplers.solvers import Method, Solver
from kdbench.training.loaders import Order

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


@dataclass
class Guided:
    """States and what the guided teacher predicts there."""

    x: Tensor
    """(B, *shape)."""
    t: Tensor
    """(B,) times."""
    goal: Tensor
    """(B, *shape) guided x_0."""
    w: Tensor
    """(B,) guidance scales."""
    cond: Condition

    def __len__(self) -> int:
        return len(self.x)


class Recorder(Denoiser):
    """The guided teacher as a denoiser that keeps what it was asked and what it said."""

    def __init__(self, teacher: Denoiser, w: Tensor) -> None:
        """``w`` (B,): scales of the rows that it will be called with."""
        super().__init__()
        self.teacher, self.w = teacher, w
        self.process, self.shape = teacher.process, teacher.shape
        self.states: list[Tensor] = []
        self.times: list[float] = []
        self.goals: list[Tensor] = []

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        if features:
            raise ValueError("a guided prediction has no features")
        goal = guided(self.teacher, x, t, cond, self.w)
        self.states.append(x)
        self.times.append(float(t[0]))
        self.goals.append(goal)
        return goal


class Trajectories:
    """Stored evaluations; the place of evaluation k of trajectory n is n K + k."""

    def __init__(self, rows: StoredRows) -> None:
        self.stored = rows
        self.times = torch.tensor(rows.facts["times"], device=rows.device)
        """(K,) of the evaluations of a trajectory."""

    def __len__(self) -> int:
        return len(self.stored) * len(self.times)

    def __getitem__(self, places: Tensor) -> Guided:
        """Evaluations at places (B,) int64."""
        places = places.to(self.times.device)
        row, step = places // len(self.times), places % len(self.times)
        x, goal = (self.stored.take(name, row, step) for name in ("x", "goal"))
        return Guided(x, self.times[step], goal, self.stored.take("w", row), self.stored.condition(row))

    def loader(self, size: int, generator: torch.Generator) -> StoredLoader[Guided]:
        """Batches of ``size``, in orders from ``generator``."""
        return StoredLoader(self.__getitem__, Order(len(self), min(size, len(self)), generator))


@torch.no_grad()
def trajectories(
    task: DiffusionTask,
    count: int,
    *,
    guidance: tuple[float, float] = (1.0, 6.0),
    steps: int | None = None,
    method: Method = "euler",
    seed: int = 0,
) -> Trajectories:
    """``count`` trajectories of the task's teacher, each with a guidance scale drawn from the range ``guidance``.

    ``steps`` defaults to that of the official teacher. They depend on the teacher, these numbers and ``seed`` alone:
    the first job makes them, and each is charged for the teacher's evaluations, two for each stored one. Raises
    ``UsageError`` for a range that is empty.
    """
    low, high = guidance
    if not low <= high:
        raise UsageError(f"guidance scales lie between a lower and an upper end, not {low} and {high}")
    steps = task.spec.evaluation.teacher_steps if steps is None else steps
    key = {
        "teacher": task.spec.teacher_identity(),
        "count": count,
        "steps": steps,
        "method": method,
        "guidance": [float(low), float(high)],
        "seed": seed,
    }
    spent = dict(task.budget.spent)

    def make(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *task.shape, generator=generator)
        w = low + (high - low) * torch.rand(count, generator=generator)
        cond, times = task.kind.conditions(count, generator), task.process.grid(steps).tolist()
        parts = []
        for start in range(0, count, CHUNK):
            rows = slice(start, min(count, start + CHUNK))
            recorder = Recorder(task.teacher(), w[rows].to(task.device))
            Solver(recorder, times, method).draw(noise[rows].to(task.device), cond[rows].to(task.device), generator)
            parts.append(recorder)
        x, goal = (
            torch.cat([torch.stack(getattr(part, name), dim=1).cpu() for part in parts]) for name in ("states", "goals")
        )
        write_rows(folder, {"x": x, "goal": goal, "w": w}, cond, times=parts[0].times)

    rows = StoredRows(task.cache.get("trajectories", key, make), task.device)
    found = Trajectories(rows)
    charge(task, spent, 2 * len(found))
    return found


def output_error(process: Process, predicted: Tensor, goal: Tensor, t: Tensor) -> Tensor:
    """(B, *shape) difference of two x_0 as that of the outputs of the networks that they come from.

    The root of the weight that denoisers of the process are trained with: exactly that difference for ``Edm`` and
    ``Flow``, and for ``Vp`` where the signal is not above five times the noise.
    """
    return spread(process.denoising_weight(t).sqrt(), predicted) * (predicted - goal)


def disagreement(process: Process, x: Tensor, conditional: Tensor, goal: Tensor, t: Tensor) -> Tensor:
    """(B,) half of 1 - cos of the angle between the noises that a conditional and a guided x_0 (B, *shape) imply."""
    one, other = (process.noise_from_x0(x, x0, t).flatten(1) for x0 in (conditional, goal))
    return 0.5 * (1 - torch.nn.functional.cosine_similarity(one, other, dim=1)).abs()


@torch.no_grad()
def replaced_errors(task: DiffusionTask, network: Denoiser, w: float, count: int = 64) -> dict[str, float]:
    """How far one evaluation of ``network`` is from guidance ``w``: mean squared errors of outputs.

    ``error_trajectory`` at the states of ``count`` fresh trajectories of the guided teacher, ``error_noised`` as
    :func:`noised_error` says, at as many.
    """
    found = trajectories(task, count, guidance=(w, w), seed=1)
    at = found[torch.arange(len(found))]
    error = output_error(task.process, network(at.x, at.t, at.cond), at.goal, at.t).square().mean()
    return {
        "error_trajectory": float(error),
        "error_noised": noised_error(task, network, task.teacher(), w, len(found)),
    }


@torch.no_grad()
def noised_error(task: DiffusionTask, network: Denoiser, teacher: Denoiser, w: float, count: int = 1000) -> float:
    """Mean squared error of ``network``'s output against ``teacher`` guided by ``w``.

    At ``count`` noised samples of the validation data, for times as teachers are trained at.
    """
    generator = torch.Generator().manual_seed(1)
    split = task.split("val")
    rows = torch.arange(count) % len(split)
    x0, cond = split.x[rows], split.cond[rows]
    t = task.process.training_times(count, generator).to(x0)
    x = task.process.noised(x0, torch.randn(x0.shape, generator=generator).to(x0), t)
    goal = guided(teacher, x, t, cond, w)
    return float(output_error(task.process, network(x, t, cond), goal, t).square().mean())
