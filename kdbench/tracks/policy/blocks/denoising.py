"""Training of the task's student as a denoiser of chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.tracks.policy.blocks.cloning import shape_of
from kdbench.tracks.policy.blocks.ddpm import Ddpm, noise_loss

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

Levels = Callable[[int, int, torch.Generator], Tensor]
"""(chunks, positions, generator) -> levels (B,) or (B, T)."""


def train_denoiser(
    task: PolicyTask, levels: int, *, ema: float, draw: Levels | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The averaged weights of the student as a predictor of noise, and the arguments of its chunk policy.

    ``draw`` draws the levels of a batch; None: one level for each chunk, uniform in 0 to N - 1.
    """
    student, schedule = task.student(), Ddpm(levels)
    generator = task.generator("noise")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        count, length = batch.actions.shape[:2]
        if draw is None:
            level = torch.randint(levels, (count,), generator=generator)
        else:
            level = draw(count, length, generator)
        noise = torch.randn(batch.actions.shape, generator=generator)
        device = batch.actions.device
        return noise_loss(model, schedule, batch, level.to(device), noise.to(device))

    fitted = task.fit(student, loss, ema=ema)
    assert fitted.ema is not None
    return fitted.ema, shape_of(task)
