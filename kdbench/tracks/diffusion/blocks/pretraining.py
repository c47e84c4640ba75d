"""The loop for networks that are trained before the tasks begin: teachers and tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdbench.errors import Diverged
from kdbench.spec import Recipe
from kdbench.tracks.diffusion.spec import Training
from kdbench.training.loop import make_optimizer, rate

log = logging.getLogger(__name__)


@torch.enable_grad()  # a teacher may be asked for, and so trained, where gradients are off
def pretrain(
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    training: Training,
    seed: int,
    on_step: Callable[[int, torch.Generator], None] | None = None,
) -> None:
    """Train ``model`` in place for ``training.steps``; its weights are averaged at last, its mode is evaluation.

    Adam, the rate rising over 2 % of the steps and falling to 0 along a cosine. ``loss(generator)`` is a scalar and
    draws all that is random from the generator; ``on_step(step, generator)``, steps counted from 1, runs after each
    update. Raises ``Diverged`` where the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    recipe = Recipe(optimizer="adam", lr=training.lr, schedule="cosine", warmup=0.02, batch_size=training.batch_size)
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters, recipe)
    average = [parameter.detach().clone() for parameter in parameters]
    model.train()
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * rate(step, training.steps, recipe)
        value = loss(generator)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step + 1, generator)
        decay = min(training.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [parameter.data for parameter in parameters], 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == training.steps:
            if not torch.isfinite(value):
                raise Diverged(f"the loss is {value.item()} at step {step + 1} of {training.steps}")
            log.info("%s: step %d of %d, loss %.4f", type(model).__name__, step + 1, training.steps, value.item())
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    model.eval()
