"""Training of denoisers on samples: the loss, and the loop for networks that are trained before the tasks begin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.blocks.pretraining import pretrain
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.spec import Training


def denoising_loss(
    model: nn.Module,
    x0: Tensor,
    cond: Condition,
    generator: torch.Generator,
    *,
    times: Tensor | None = None,
    target: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Mean weighted squared error of the predicted clean sample; scalar, float32.

    ``times`` (B,) default to those that the process is trained at. ``target`` (B, *shape) is x_0 by default.
    ``dropout`` is the share of rows without condition. Noise, times and dropped rows come from ``generator``.
    """
    process = model.process
    t = process.training_times(len(x0), generator).to(x0) if times is None else times
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    if dropout:
        cond = cond.dropped((torch.rand(len(x0), generator=generator) < dropout).to(x0.device))
    predicted = model(process.noised(x0, noise, t), t, cond)
    error = (predicted - (x0 if target is None else target)).pow(2).flatten(1).mean(1)
    return (process.denoising_weight(t) * error).mean()


def train(
    model: Denoiser,
    training: Training,
    batch: Callable[[int, torch.Generator], tuple[Tensor, Condition]],
    seed: int,
    *,
    target: Callable[[Tensor, Tensor, Condition], Tensor] | None = None,
) -> Denoiser:
    """Train a denoiser for ``training.steps`` and return it with averaged weights, in evaluation mode.

    ``batch(size, generator)`` gives clean samples and conditions. ``target(x_t, t, cond)`` is what it predicts in place
    of the clean sample: the exact denoiser, where there is one. Raises ``Diverged`` where the loss is not finite.
    """
    device = next(model.parameters()).device

    def loss(generator: torch.Generator) -> Tensor:
        x0, cond = batch(training.batch_size, generator)
        x0, cond = x0.to(device), cond.to(device)
        if target is None:
            return denoising_loss(model, x0, cond, generator, dropout=training.dropout)
        cond = cond.dropped((torch.rand(len(x0), generator=generator) < training.dropout).to(device))
        return fitting_loss(model, target, x0, cond, generator)

    pretrain(model, loss, training, seed)
    return model


def fitting_loss(
    model: nn.Module,
    target: Callable[[Tensor, Tensor, Condition], Tensor],
    x0: Tensor,
    cond: Condition,
    generator: torch.Generator,
    times: Tensor | None = None,
) -> Tensor:
    """As :func:`denoising_loss`, where the target is what another denoiser says of the same noised samples."""
    process = model.process
    t = process.training_times(len(x0), generator).to(x0) if times is None else times
    x = process.noised(x0, torch.randn(x0.shape, generator=generator).to(x0), t)
    with torch.no_grad():
        wanted = target(x, t, cond)
    error = (model(x, t, cond) - wanted).pow(2).flatten(1).mean(1)
    return (process.denoising_weight(t) * error).mean()
