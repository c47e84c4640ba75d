"""Discriminators on feature maps of a denoiser, and the losses of adversarial training.

A discriminator is a few heads on features of a network that somebody else has: of the critic (DMD2), of the teacher, of
a frozen classifier (projected GAN). Real and generated samples are both noised before (diffusion-GAN; Wang et al., ICLR
2023). Logits are positive for real samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu, softplus

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.training.state import Values

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

Gan = Literal["softplus", "hinge", "bce", "lsgan", "wgan"]


class Heads(nn.Module):
    """One logit per sample and feature map: a small network at each place of a map, averaged over the places."""

    def __init__(self, channels: Mapping[str, int], names: Iterable[str] = ("mid",), hidden: int = 0) -> None:
        """``channels`` are those of the maps by name, ``names`` the maps that are read.

        ``hidden`` is the width of a layer between (SiLU); 0 for none, a convolution of size 1. Weights come from the
        global generator: make it inside ``task.seeded(...)``. Raises ``UsageError`` for a map that there is not.
        """
        super().__init__()
        self.names = tuple(names)
        unknown = [name for name in self.names if name not in channels]
        if unknown or not self.names:
            raise UsageError(f"a discriminator reads some of the maps {', '.join(sorted(channels))}, not {unknown}")
        self.heads = nn.ModuleDict({name.replace(".", "_"): _head(channels[name], hidden) for name in self.names})

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """(B, maps) logits from maps (B, C) or (B, C, ...)."""
        return torch.stack([self._logit(name, features[name]) for name in self.names], dim=1)

    def _logit(self, name: str, map_: Tensor) -> Tensor:
        places = map_.float().flatten(2).transpose(1, 2) if map_.ndim > 2 else map_.float()[:, None]
        logit: Tensor = self.heads[name.replace(".", "_")](places).mean(dim=(1, 2))
        return logit


def _head(channels: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(channels, 1)
    return nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, 1))


def noised_logits(
    network: Denoiser,
    heads: nn.Module,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """(B, maps) logits of ``x`` (B, *shape) noised to ``t`` (B,); gradients reach ``x`` where it has any."""
    _, features = network(network.process.noised(x, noise, t), t, cond, features=True)
    logits: Tensor = heads(features)
    return logits


class DiffusionGan:
    """Logits of samples at fresh levels of one distribution, for real and generated ones alike."""

    def __init__(
        self, network: Denoiser, heads: nn.Module, levels: Levels, generator: torch.Generator, *, mean: bool = False
    ) -> None:
        """``generator`` gives levels and noise. ``mean`` averages the logits of several maps, (B, 1) then."""
        self.network, self.heads, self.levels, self.generator, self.mean = network, heads, levels, generator, mean

    def logits(self, x: Tensor, cond: Condition) -> Tensor:
        """(B, maps) for samples (B, *shape) with conditions."""
        t = self.levels.draw(len(x), self.generator).to(x.device)
        found = noised_logits(self.network, self.heads, x, cond, t, noise_like(x, self.generator))
        return found.mean(1, keepdim=True) if self.mean else found


def discriminator_loss(real: Tensor, fake: Tensor, kind: Gan = "softplus", smoothing: float = 0.0) -> Tensor:
    """Of the logits of real and of generated samples; means over all logits.

    ``softplus``: softplus(-real) + softplus(fake), the original GAN. ``hinge``: relu(1 - real) + relu(1 + fake).
    ``bce``: cross entropy against 1 - ``smoothing`` for real ones and 0. ``lsgan``: (real - 1)^2 + fake^2. ``wgan``:
    fake - real, to be used with a penalty on gradients. Raises ``UsageError`` for label smoothing of another kind.
    """
    if smoothing and kind != "bce":
        raise UsageError(f"labels are smoothed in the loss 'bce' alone, not in {kind!r}")
    if kind == "softplus":
        return softplus(-real).mean() + softplus(fake).mean()
    if kind == "hinge":
        return relu(1 - real).mean() + relu(1 + fake).mean()
    if kind == "bce":
        positive = torch.full_like(real, 1 - smoothing)
        return binary_cross_entropy_with_logits(real, positive) + softplus(fake).mean()
    if kind == "lsgan":
        return ((real - 1) ** 2).mean() + (fake**2).mean()
    if kind == "wgan":
        return fake.mean() - real.mean()
    raise UsageError(f"there is no loss of discriminators {kind!r}")


def generator_loss(fake: Tensor, kind: Gan = "softplus") -> Tensor:
    """Of the logits of generated samples, which gradients go through.

    ``softplus`` and ``bce``: softplus(-fake), non-saturating. ``hinge`` and ``wgan``: -fake. ``lsgan``: (fake - 1)^2.
    """
    if kind in ("softplus", "bce"):
        return softplus(-fake).mean()
    if kind in ("hinge", "wgan"):
        return -fake.mean()
    if kind == "lsgan":
        return ((fake - 1) ** 2).mean()
    raise UsageError(f"there is no loss of generators {kind!r}")


def r1_penalty(logits: Tensor, x: Tensor, gamma: float) -> Tensor:
    """gamma / 2 E |gradient of the logit with respect to the sample|^2 (Mescheder et al., ICML 2018).

    ``x`` (B, *shape) are real samples that require a gradient, ``logits`` (B, maps) come from them; those of one sample
    are added up.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gamma / 2 * (gradient**2).flatten(1).sum(1).mean()


class Lazy(Values):
    """Every how many updates a regularizer is computed; its weight makes up for the others (Karras et al., CVPR 2020).

    Declare it as state.
    """

    kept = ("updates",)

    def __init__(self, every: int = 16) -> None:
        self.every, self.updates = every, 0

    def weight(self) -> float:
        """``every`` at the first update and each ``every``-th from there, 0 at the others; counts the call."""
        due = self.updates % self.every == 0
        self.updates += 1
        return float(self.every) if due else 0.0


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of the logits on the right side of 0, the mean of both kinds of samples."""
    return ((real > 0).float().mean() + (fake < 0).float().mean()) / 2


class Adversary:
    """The adversarial side of a distillation: what it adds to the losses of critic and generator."""

    def __init__(
        self,
        gan: DiffusionGan,
        *,
        critic_weight: float,
        generator_weight: float,
        kind: Gan = "softplus",
        smoothing: float = 0.0,
        r1: float = 0.0,
        every: int = 16,
        notes: Notes | None = None,
    ) -> None:
        """``r1`` is the weight gamma of a penalty that is computed every so many updates of the critic; 0: none.

        ``notes`` gets ``gan_accuracy``, the discriminator's on the samples that it learns from.
        """
        self.gan, self.kind, self.smoothing, self.r1, self.notes = gan, kind, smoothing, r1, notes
        self.critic_weight, self.generator_weight = critic_weight, generator_weight
        self.lazy = Lazy(every)

    @property
    def parts(self) -> list[Values]:
        """What changes, for the ``state`` of a training."""
        return [self.lazy]

    def critic_losses(self, fake: Tensor, cond: Condition, real: Batch) -> dict[str, Tensor]:
        """``gan`` and, where it is due, ``r1``, from samples (B, *shape) generated for ``cond`` and real ones."""
        x = real.x
        weight = self.lazy.weight() if self.r1 else 0.0
        if weight:
            x = x.detach().requires_grad_(True)
        positive, negative = self.gan.logits(x, real.cond), self.gan.logits(fake.detach(), cond)
        if self.notes is not None:
            self.notes.add(gan_accuracy=accuracy(positive, negative))
        losses = {"gan": self.critic_weight * discriminator_loss(positive, negative, self.kind, self.smoothing)}
        if weight:
            losses["r1"] = weight * r1_penalty(positive, x, self.r1)
        return losses

    def generator_loss(self, x: Tensor, cond: Condition) -> Tensor:
        """The weighted loss of generated samples (B, *shape), which its gradient goes to."""
        return self.generator_weight * generator_loss(self.gan.logits(x, cond), self.kind)


def new_adversary(
    task: DiffusionTask,
    network: Denoiser,
    *,
    critic_weight: float,
    generator_weight: float,
    hidden: int = 64,
    notes: Notes | None = None,
    **options: Any,
) -> Adversary | None:
    """An adversary whose head reads the bottleneck of ``network``, at all levels; None where ``generator_weight`` is 0.

    The head's first weights and the noise are of streams of their own. Options are those of :class:`Adversary`. Train
    ``adversary.gan.heads`` with the network.
    """
    if not generator_weight:
        return None
    with task.seeded("heads"):
        heads = task.place(Heads(network.channels, hidden=hidden))
    gan = DiffusionGan(network, heads, Levels(task.process), task.generator("gan"))
    return Adversary(gan, critic_weight=critic_weight, generator_weight=generator_weight, notes=notes, **options)
