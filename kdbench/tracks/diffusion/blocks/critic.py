"""The critic: a network that learns, beside the generator, what the generator's samples are like.

In score distillation it is a denoiser of the generator's samples (the fake score), with the heads of a discriminator
where there are any. Outside its own turn nothing of it can change: gradients go through it to its inputs, never into
its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import Diverged, JobError
from kdbench.spec import Recipe
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import spread
from kdbench.training.loop import make_optimizer

LARGEST = 1e5
"""What infinite entries of a gradient become; undefined ones become 0 (released code of the SiD family)."""


def error_at(network: Denoiser, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
    """Mean of w(t) (D(x_t, t) - x)^2 over samples and their entries, at given times (B,) and noise.

    w is the weight of the process: 1 / t^2 + 1 / std^2 for ``Edm`` (DMD2, released code), that of the velocity's
    squared error for ``Flow``. No gradient reaches ``x`` (B, *shape).
    """
    target = x.detach()
    process = network.process
    found = network(process.noised(target, noise, t), t, cond)
    return (spread(process.denoising_weight(t), x) * (found - target) ** 2).mean()


def fake_score_loss(
    network: Denoiser, x: Tensor, cond: Condition, levels: Levels, generator: torch.Generator
) -> Tensor:
    """:func:`error_at` of generated samples ``x`` at fresh levels and noise."""
    t = levels.draw(len(x), generator).to(x)
    return error_at(network, x, cond, t, noise_like(x, generator))


class Critic:
    """A network with heads, and their optimizer.

    What of them requires gradients when this is made is what the critic trains (an adapter alone, where the rest is
    frozen), and only inside ``with critic.training():``. Declare ``critic.parts`` as ``state`` of ``task.fit`` where
    :func:`~kdbench.tracks.diffusion.blocks.turns.alternate` is not used.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        modules: Iterable[nn.Module] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        """``modules`` are heads and whatever else learns with it. ``clip`` is the largest norm of its gradient.

        Raises ``JobError`` where nothing requires a gradient.
        """
        self.network = network
        self.modules = nn.ModuleList(modules)
        self.updates = 0
        """Updates so far."""
        self.clip = clip
        self._trained = [p for part in (network, self.modules) for p in part.parameters() if p.requires_grad]
        if not self._trained:
            raise JobError("nothing to train: no parameter of the critic requires a gradient")
        recipe = Recipe(optimizer="adamw", lr=lr, betas=betas, weight_decay=weight_decay)
        self.optimizer = make_optimizer(self._trained, recipe)
        self._require(False)

    @property
    def parts(self) -> list[Any]:
        """Everything of it that changes, for ``task.fit(..., state=[...])``."""
        return [self, self.network, self.modules]

    def _require(self, wanted: bool) -> None:
        for parameter in self._trained:
            parameter.requires_grad_(wanted)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The critic's turn: losses for :meth:`update` are computed inside."""
        self._require(True)
        try:
            yield
        finally:
            self._require(False)

    def update(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step down the sum of the losses; the losses themselves, without graph.

        No other network gets a gradient, whatever the losses depend on. Entries of the gradient that are infinite or
        undefined are replaced before it is clipped. Raises ``Diverged`` where a loss is not finite, ``JobError``
        outside of :meth:`training` and where no loss depends on the critic.
        """
        if not all(parameter.requires_grad for parameter in self._trained):
            raise JobError("a critic is updated inside `with critic.training():`, where its losses are computed")
        total = reduce(add, losses.values())
        if total.device.type == "cpu" and not math.isfinite(total.item()):
            raise Diverged(f"the loss of the critic is {total.item()} at its update {self.updates + 1}")
        if not total.requires_grad:
            raise JobError("no loss of the critic depends on its parameters")
        gradients = torch.autograd.grad(total, self._trained, allow_unused=True)
        for parameter, gradient in zip(self._trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.nan_to_num(nan=0.0, posinf=LARGEST, neginf=-LARGEST)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return {name: value.detach() for name, value in losses.items()}

    def rate(self, lr: float) -> None:
        """Set the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and count; the networks are states of their own (:attr:`parts`)."""
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
