"""Distribution matching: the gradient of a reverse KL divergence from two denoisers.

For generated x and its noised x_t = alpha x + sigma n, with densities p_t of generated and q_t of real samples,

    d KL(p_t || q_t) / dx = alpha (score p_t - score q_t)(x_t) = (alpha / sigma)^2 (D_fake - D_real)(x_t, t)

in expectation over x and n, as D = (x_t + sigma^2 score) / alpha (Yin et al., CVPR 2024, section 3.2; Luo et al.,
NeurIPS 2023). Practice leaves out the factor in front and divides by the mean of |x - D_real| over each sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Process, Time, spread

FLOOR = 1e-6
"""Least value of the normalizer."""


@dataclass(frozen=True)
class Pair:
    """What teacher and critic make of the same noised samples; without graph."""

    noised: Tensor
    """(B, *shape)."""
    t: Tensor
    """(B,) times."""
    real: Tensor
    """(B, *shape) x_0 of the teacher."""
    fake: Tensor
    """(B, *shape) x_0 of the critic."""


@torch.no_grad()
def predictions(
    teacher: Denoiser,
    critic: Denoiser,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    guidance: Time = 1.0,
    negative: Condition | None = None,
    real_cond: Condition | None = None,
) -> Pair:
    """Both predictions of ``x`` (B, *shape) noised to ``t`` (B,); no gradient goes through either network.

    ``guidance`` and ``negative`` are the teacher's (:func:`~kdbench.tracks.diffusion.networks.base.guided`); the
    critic is asked for ``cond`` alone. ``real_cond`` is what the teacher is asked for, where that is something else.
    """
    noised = teacher.process.noised(x.detach(), noise, t)
    real = guided(teacher, noised, t, cond if real_cond is None else real_cond, guidance, negative)
    return Pair(noised, t, real, critic(noised, t, cond))


def normalizer(x: Tensor, real: Tensor, floor: float = FLOOR) -> Tensor:
    """(B, 1, ...) mean of |x - D_real| over the entries of each sample, at least ``floor``; no gradient."""
    distance = (x.detach() - real.detach()).abs().flatten(1).mean(1).clamp_min(floor)
    return spread(distance, x)


@torch.no_grad()
def dmd_gradient(
    x: Tensor, real: Tensor, fake: Tensor, *, normalize: bool = True, weight: Tensor | None = None
) -> Tensor:
    """(B, *shape) the direction g = weight (D_fake - D_real) / mean|x - D_real| that x moves against.

    ``normalize=False`` leaves out the divisor: sigma^2 / alpha (score p_t - score q_t). ``weight`` is (B,).
    """
    gradient = fake - real
    if normalize:
        gradient = gradient / normalizer(x, real)
    return gradient if weight is None else spread(weight, gradient) * gradient


@torch.no_grad()
def kl_gradient(process: Process, real: Tensor, fake: Tensor, t: Time) -> Tensor:
    """(B, *shape) the exact gradient of KL(p_t || q_t) with respect to x: (alpha / sigma)^2 (D_fake - D_real)."""
    return (fake - real) / spread(process.level(t), real) ** 2


def pulled(x: Tensor, gradient: Tensor) -> Tensor:
    """The loss mean (x - stopgrad(x - g))^2 / 2, whose gradient with respect to x is g over the number of entries."""
    target = (x - gradient).detach()
    return 0.5 * ((x - target) ** 2).mean()


def gradient_norm(gradient: Tensor) -> Tensor:
    """Mean over samples of the Euclidean norm of a gradient (B, *shape); of the one that is not normalized it says how
    far generator and teacher are apart."""
    return gradient.detach().flatten(1).norm(dim=1).mean()
