"""Distribution matching of any f-divergence: every sample's gradient is weighed by its density ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.backward import Reached
from kdbench.tracks.diffusion.blocks.critic import error_at
from kdbench.tracks.diffusion.blocks.dmd import dmd_gradient, gradient_norm, predictions, pulled
from kdbench.tracks.diffusion.blocks.fdiv import FDivergence, sample_weights
from kdbench.tracks.diffusion.blocks.gan import accuracy, discriminator_loss, generator_loss, noised_logits
from kdbench.tracks.diffusion.blocks.gradients import GradientTail
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.spec import Exact

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


def feature_network(task: DiffusionTask) -> Denoiser:
    """The frozen teacher as a reader of features; of an exact one the network that is fitted to it."""
    if isinstance(task.spec.teacher, Exact):
        return task.score_network().requires_grad_(False).eval()
    teacher: Denoiser = task.teacher()
    return teacher


@dataclass
class Judge:
    """Heads on the features of a network, and the weights of their losses."""

    network: Denoiser
    heads: nn.Module
    critic_weight: float
    generator_weight: float
    own: bool
    """The heads have losses of their own, at the levels of the scores; otherwise ``adversary`` of the matching does."""


class WeightedMatching(Matching):
    """As :class:`~kdbench.tracks.diffusion.blocks.matching.Matching`, with the weights h of an f-divergence.

    The noised sample that teacher and critic are asked about is shown to the heads, too; their logit gives the ratio r,
    and the direction of a sample is multiplied by h(r) of mean 1 over the batch, which carries no gradient. Where the
    judge's losses are its own, real and generated samples are judged at the levels of the critic's denoising loss, and
    the generator's adversarial loss takes the logit that gave the ratio.
    """

    def __init__(
        self,
        task: DiffusionTask,
        *rest: Any,
        divergence: FDivergence,
        judge: Judge,
        ratio: DensityRatio,
        tail: GradientTail,
        **options: Any,
    ) -> None:
        super().__init__(task, *rest, **options)
        self.divergence, self.judge, self.ratio, self.tail = divergence, judge, ratio, tail
        self.judge_rng = task.generator("judge")
        self.range = Notes()
        """Least, mean and largest weight of a batch, over all updates. Declare it as state."""

    def critic_loss(self, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The critic's; with ``gan``, that of the heads at the same levels, where these have losses of their own."""
        if not self.judge.own:
            return super().critic_loss(draw, real)
        assert real is not None
        with torch.no_grad():
            x, cond, _ = self.sample(self.generator, draw, real, self.critic_rng)
        t, noise = self.all_levels.draw(len(x), self.critic_rng).to(x), noise_like(x, self.critic_rng)
        rows = min(len(x), len(real))
        network, heads = self.judge.network, self.judge.heads
        fake = noised_logits(network, heads, x, cond, t, noise)
        fresh = noise_like(real.x[:rows], self.judge_rng)
        positive = noised_logits(network, heads, real.x[:rows], real.cond[slice(rows)], t[:rows], fresh)
        if self.notes is not None:
            self.notes.add(gan_accuracy=accuracy(positive, fake))
        return {
            "score": error_at(self.critic.network, x, cond, t, noise),
            "gan": self.judge.critic_weight * discriminator_loss(positive, fake),
        }

    def generator_loss(self, model: Denoiser, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The generator's, on one differentiable call."""
        if not self.judge.own:
            return super().generator_loss(model, draw, real)
        x, cond, _ = self.sample(model, draw, real, self.rng)
        gradient, logits = self.weighted(x, cond)
        losses = {"dmd": pulled(x, gradient)}
        if self.judge.generator_weight:
            losses["gan"] = self.judge.generator_weight * generator_loss(logits)
        return losses

    def gradient(self, x: Tensor, cond: Condition, reached: Reached) -> Tensor:
        return self.weighted(x, cond)[0]

    def weighted(self, x: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """What the samples move against (B, *shape), and the logits (B, maps) of the same noised samples."""
        t = self.levels.draw(len(x), self.rng).to(x)
        noise = noise_like(x, self.rng)
        pair = predictions(self.target(), self.critic.network, x, cond, t, noise, guidance=self.guidance)
        with torch.set_grad_enabled(self.judge.own and self.judge.generator_weight > 0):
            logits = noised_logits(self.judge.network, self.judge.heads, x, cond, t, noise)
        h = sample_weights(self.divergence, self.ratio(logits, t))
        found = dmd_gradient(x, pair.real, pair.fake, normalize=self.normalize, weight=h)
        self.tail.add(found)
        extent = {"h_min": h.min(), "h_mean": h.mean(), "h_max": h.max()}
        self.range.add(**extent)
        if self.notes is not None:
            self.notes.add(gap=gradient_norm(pair.fake - pair.real), gradient=gradient_norm(found), **extent)
        return found, logits
