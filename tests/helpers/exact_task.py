"""What blocks ask a task of the track ``diffusion`` for, around a mixture in closed form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from kdbench.budget import Budget
from kdbench.cache import Cache
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.processes import Flow, Process
from kdbench.tracks.diffusion.samplers.solvers import Solver

CLASSES = Mixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.3, 0.2, 0.4], [0.5, 0.3, 0.2], [1, 2, 2])


class ExactNet(Denoiser):
    """The mixture's own denoiser, in the type of its input."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.shape = process, (2,)
        self.rows = 0
        """Rows that it was called with."""

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor:
        self.rows += len(x)
        tokens = None if cond.tokens is None else cond.tokens[:, 0]
        return CLASSES.denoise(x, self.process.alpha(t), self.process.sigma(t), tokens)


def exact_task(folder: Path, process: Process | None = None, phase: str = "train", guidance: float = 1.0) -> Any:
    """A stand-in with a teacher, conditions of two classes, a cache in ``folder`` and a budget."""
    process = Flow() if process is None else process
    teacher = ExactNet(process)

    def conditions(count: int, generator: torch.Generator) -> Condition:
        return Condition.of_tokens(torch.randint(1, 3, (count,), generator=generator))

    def solver(steps: int, w: float) -> Solver:
        return Solver(teacher, process.grid(steps).tolist(), "heun", guidance=w)

    official: Callable[..., Solver] = solver
    return SimpleNamespace(
        spec=SimpleNamespace(
            name="mixture",
            teacher_identity=lambda: {"mixture": process.state()},
            evaluation=SimpleNamespace(teacher_steps=6),
            recipe=SimpleNamespace(batch_size=8),
        ),
        generator=lambda name: torch.Generator().manual_seed(len(name)),
        cache=Cache(folder),
        budget=Budget({"steps": 10}),
        phase=phase,
        device=torch.device("cpu"),
        shape=(2,),
        process=process,
        guidance=guidance,
        kind=SimpleNamespace(conditions=conditions),
        teacher=lambda: teacher,
        official_teacher=official,
    )
