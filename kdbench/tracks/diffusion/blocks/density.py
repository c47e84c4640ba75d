"""On points, whose density is known: how right the density ratio of a discriminator is at the end of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.blocks.backward import generated
from kdbench.tracks.diffusion.blocks.fdiv import FDivergence
from kdbench.tracks.diffusion.blocks.gan import noised_logits
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Process, spread

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

CLEANEST = 0.3
"""Place of the grid from which on a density is estimated from samples."""
SAMPLES = 4096
QUERIES = 512


def log_density_of(process: Process, x: Tensor, t: Tensor, samples: Tensor, same: Tensor | None = None) -> Tensor:
    """(B,) log density, at noised points ``x`` (B, D), of samples (N, D) noised to ``t`` (B,); float64.

    It is that of N Gaussians, the density without bias for the distribution that the samples come from. ``same`` (B, N)
    bool says which samples count for a row.
    """
    a, b = spread(process.alpha(t), x).double(), spread(process.sigma(t), x).double()
    square = (x.double()[:, None] - a[..., None] * samples.double()).square().sum(2) / b**2
    logits = -square / 2 - x.shape[1] * (b * math.sqrt(2 * math.pi)).log()
    if same is None:
        return logits.logsumexp(1) - math.log(len(samples))
    return logits.masked_fill(~same, -torch.inf).logsumexp(1) - same.sum(1).clamp_min(1).log()


@dataclass(frozen=True)
class LogRatios:
    """log q / p at the generator's own noised samples, clipped as the ratios are; (B,) float64 each."""

    found: Tensor
    """Of the discriminator."""
    exact: Tensor
    """Of the mixture's exact density and of the generator's, estimated from other samples of the same class."""

    def summary(self) -> dict[str, float]:
        """``log_ratio_correlation`` (0 where one of them is constant) and ``log_ratio_error``, mean absolute."""
        both = torch.stack([self.found, self.exact])
        varies = bool((both.std(1) > 0).all())
        return {
            "log_ratio_correlation": float(torch.corrcoef(both)[0, 1]) if varies else 0.0,
            "log_ratio_error": float((self.found - self.exact).abs().mean()),
        }

    def divergences(self, kind: FDivergence) -> dict[str, float]:
        """``divergence_found`` and ``divergence_exact``: E_p f(r), mean over noise levels."""
        return {
            f"divergence_{name}": float(kind.f(ratio.exp()).mean())
            for name, ratio in (("found", self.found), ("exact", self.exact))
        }


@torch.no_grad()
def log_ratios(
    task: DiffusionTask,
    generator: Denoiser,
    times: Sequence[float],
    network: Denoiser,
    heads: nn.Module,
    ratio: DensityRatio,
) -> LogRatios:
    """Ratios at levels from 30 % of the grid on, of generated points, which ``heads`` read from ``network``."""
    rng = task.generator("ratio")
    mixture = task.kind.mixture  # type: ignore[attr-defined]

    def made(count: int) -> tuple[Tensor, Condition]:
        cond = task.kind.conditions(count, rng).to(task.device)
        noise = torch.randn(count, *task.shape, generator=rng).to(task.device)
        stops = torch.randint(len(times), (count,), generator=rng)
        return generated(generator, noise, cond, times, rng, stop=stops)[0], cond

    samples, classes = made(SAMPLES)
    x, cond = made(QUERIES)
    t = Levels(task.process, CLEANEST, 0.98).draw(len(x), rng).to(x)
    noise = noise_like(x, rng)
    noised = task.process.noised(x, noise, t)
    tokens = None if cond.tokens is None else cond.tokens[:, 0]
    same = None if tokens is None or classes.tokens is None else tokens[:, None] == classes.tokens[:, 0]
    p = log_density_of(task.process, noised, t, samples, same)
    q = mixture.to(task.device).log_density(noised.double(), task.process.alpha(t), task.process.sigma(t), tokens)
    found = ratio.raw(noised_logits(network, heads, x, cond, t, noise)).log().double()
    return LogRatios(found, (q - p).exp().clamp(ratio.least, ratio.most).log())
