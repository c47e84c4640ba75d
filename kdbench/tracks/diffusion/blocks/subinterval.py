"""Score matching inside a part of the noise levels: samples are known at a time s > 0 only.

From x_s the forward process goes on to a noisier t: x_t = a x_s + b n with a = alpha_t / alpha_s and
b^2 = sigma_t^2 - a^2 sigma_s^2. As grad log p(x_t | x_s) = -n / b, the score of x_t is -E[n / b | x_t], and the target

    x_0* = (x_t - sigma_t^2 n / b) / alpha_t = x_s / alpha_s - alpha_t sigma_s^2 / (alpha_s^2 b) n

has E[x_0* | x_t] = E[x_0 | x_t], although no clean sample is known. On a straight line it is the velocity
v* = (alpha_s^2 sigma_t + alpha_t sigma_s^2) / (alpha_s^2 b) n - x_s / alpha_s (Fan et al., 2025, arXiv 2510.27684,
section 3.3). Taking x_s for a clean sample and n for the whole noise gives the target n - x_s, which is biased.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Process, Time, spread

Target = Literal["corrected", "naive"]
LARGEST = 10.0
"""Of the weight 1 / b^2 (released configuration of AC-DMD, which takes the target over)."""


def factors(process: Process, s: Time, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of x_t = a x_s + b n, in the shape that multiplies ``x`` (B, ...); b is 0 where t <= s."""
    alpha_s, sigma_s = spread(process.alpha(s), x), spread(process.sigma(s), x)
    a = spread(process.alpha(t), x) / alpha_s
    return a, (spread(process.sigma(t), x) ** 2 - (a * sigma_s) ** 2).clamp_min(0).sqrt()


def corrected_x0(process: Process, x: Tensor, noise: Tensor, s: Time, t: Time) -> Tensor:
    """(B, *shape) x_0* of the samples ``x`` at ``s`` that ``noise`` brought to ``t`` > s."""
    alpha_s, sigma_s = spread(process.alpha(s), x), spread(process.sigma(s), x)
    a, b = factors(process, s, t, x)
    return x / alpha_s - a * sigma_s**2 / (alpha_s * b) * noise


def naive_x0(process: Process, x: Tensor, noise: Tensor, s: Time, t: Time) -> Tensor:
    """(B, *shape) the clean sample that the target n - x_s means: biased wherever s > 0."""
    return process.x0_from_velocity(process.diffuse(x, noise, s, t), noise - x, t)


def naive_bias(process: Process, x: Tensor, x0: Tensor, s: Time, t: Time) -> Tensor:
    """(B, *shape) E[n - x_s | x_t] minus the true velocity, at states ``x`` of ``t`` with posterior mean ``x0``.

    In closed form: given x_t and x_0, the fresh part of the whole noise N = (x_t - alpha_t x_0) / sigma_t has the mean
    b / sigma_t N and the one in x_s has a sigma_s / sigma_t N.
    """
    a, b = factors(process, s, t, x)
    noise = process.noise_from_x0(x, x0, t)
    alpha_s, sigma_s, sigma_t = (spread(value, x) for value in (process.alpha(s), process.sigma(s), process.sigma(t)))
    expected = (b / sigma_t) * noise - (alpha_s * x0 + a * sigma_s**2 / sigma_t * noise)
    return expected - (noise - x0)


def target_weight(process: Process, s: Time, t: Time, x: Tensor, largest: float = LARGEST) -> Tensor:
    """(B,) b^2 min(1 / b^2, ``largest``), with b on the straight line that the process is a scaling of.

    The variance of the target grows as 1 / b^2 where t comes near s: its error is multiplied by b, and the square of
    that by 1 / b^2 again, up to a bound.
    """
    b = factors(process, s, t, x)[1]
    line = b / (spread(process.alpha(t), x) + spread(process.sigma(t), x))
    return (line**2 * largest).clamp_max(1.0).flatten().expand(len(x))


def subinterval_loss(
    network: Denoiser,
    x: Tensor,
    cond: Condition,
    s: Time,
    t: Tensor,
    noise: Tensor,
    *,
    target: Target = "corrected",
    largest: float = LARGEST,
) -> Tensor:
    """Scalar: weighted squared error of a denoiser trained on samples ``x`` (B, *shape) at time ``s``, at ``t`` (B,).

    The weight is that of the process times :func:`target_weight`. No gradient reaches ``x``.
    """
    process, x = network.process, x.detach()
    goal = (corrected_x0 if target == "corrected" else naive_x0)(process, x, noise, s, t)
    found = network(process.diffuse(x, noise, s, t), t, cond)
    weight = process.denoising_weight(t).to(x) * target_weight(process, s, t, x, largest)
    return (weight * (found - goal).pow(2).flatten(1).mean(1)).mean()


def empirical_x0(
    process: Process, samples: Tensor, x: Tensor, s: Time, t: Tensor, same: Tensor | None = None
) -> Tensor:
    """(B, *shape) E[x_0* | x_t] where x_s is one of ``samples`` (N, *shape) with equal chances, at ``x`` (B, *shape).

    What a critic of these samples would learn, in closed form. ``s`` is a number, ``t`` (B,). ``same`` (B, N) bool says
    which samples are possible for a row: those of its condition. float64 inside.
    """
    wide, times = x.double(), t.double()
    rows, known = wide.flatten(1), samples.double().flatten(1)
    a, b = factors(process, s, times, rows)
    logits = (a * (rows @ known.T) - a**2 * (known**2).sum(1) / 2) / b**2
    if same is not None:
        logits = logits.masked_fill(~same, -torch.inf)
    mean = (logits.softmax(1) @ known).view_as(x)
    a, b = factors(process, s, times, wide)
    return corrected_x0(process, mean, (wide - a * mean) / b, s, times).to(x.dtype)


# --- trajectories that are matched from one step to the next ----------------------------------------------------------


def mixed_noise(process: Process, implied: Tensor, fresh: Tensor, s: Time, t: Time) -> Tensor:
    """(B, *shape) the whole noise of a point that was moved to ``s`` along its own noise and diffused on to ``t``.

    The point alpha_s x_0 + sigma_s ``implied``, diffused with ``fresh``, is alpha_t x_0 + sigma_t times this.
    """
    a, b = factors(process, s, t, implied)
    return (a * spread(process.sigma(s), implied) * implied + b * fresh) / spread(process.sigma(t), implied)


def importance_weight(process: Process, implied: Tensor, fresh: Tensor, s: Time, t: Time) -> Tensor:
    """(B,) exp(-mean(mixed^2) / 2) / exp(-mean(fresh^2) / 2), means over a sample's values.

    Of the samples that a critic learns from (Luo et al., ICCV 2025, released code): 1 where the implied noise is as
    large as noise is.
    """
    mixed = mixed_noise(process, implied, fresh, s, t)
    return (0.5 * (fresh.pow(2).flatten(1).mean(1) - mixed.pow(2).flatten(1).mean(1))).exp()


def snr_weight(process: Process, t: Time, most: float = 5.0) -> Tensor:
    """Signal to noise ratio at ``t``, at most ``most`` (min-SNR)."""
    return process.level(t).pow(-2).clamp_max(most)
