"""The two terms that distribution matching with a guided teacher is made of, each with noise levels of its own.

With T_c and T_0 the teacher's prediction with and without the condition, F_c the critic's and w the scale of guidance,
T_w = T_c + (w - 1) (T_c - T_0), and samples are moved by

    T_w - F_c = [T_c - F_c] + (w - 1) [T_c - T_0] = DM + CA,

distribution matching and augmentation by guidance (Liu et al., ICLR 2026). The identity holds at one noised
sample; the terms may as well be taken at different ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.backward import Reached
from kdbench.tracks.diffusion.blocks.dmd import gradient_norm, normalizer, pulled
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser

Schedule = Literal["shared", "cleaner", "independent", "hybrid"]
"""``shared``: one level of the full range for both terms. ``cleaner``: one for both, below the generator's.
``independent``: one of the full range each. ``hybrid``: the full range for DM, below the generator's level for CA."""
Terms = Literal["both", "ca", "dm", "ca+moments", "ca+gan"]
"""Terms of the gradient, and what stands in the place of DM."""


@dataclass(frozen=True)
class Asked:
    """The teacher's two predictions of noised samples."""

    with_condition: Tensor
    """(B, *shape) T_c."""
    without: Tensor
    """(B, *shape) T_0."""

    def guided(self, w: float) -> Tensor:
        """T_w."""
        return self.without + w * (self.with_condition - self.without)


@torch.no_grad()
def asked(teacher: Denoiser, x: Tensor, t: Tensor, cond: Condition) -> Asked:
    """Both predictions, by one call of 2 B rows."""
    both = teacher(torch.cat([x, x]), torch.cat([t, t]), Condition.cat([cond, cond.null()]))
    return Asked(*both.chunk(2))


def augmentation(found: Asked, w: float) -> Tensor:
    """(B, *shape) the gradient -(w - 1) (T_c - T_0): samples move against it. Of the teacher alone."""
    return (1 - w) * (found.with_condition - found.without)


def matching_term(found: Asked, fake: Tensor) -> Tensor:
    """(B, *shape) the gradient F_c - T_c: samples move against it."""
    return fake - found.with_condition


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel, over samples and places."""

    mean: Tensor
    """(C,)."""
    variance: Tensor
    """(C,)."""

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        """Of samples (B, C, ...); points (B, D) have D channels of one place."""
        values = x.flatten(2).transpose(0, 1).flatten(1) if x.ndim > 2 else x.T
        return cls(values.mean(1), values.var(1, unbiased=False))

    def divergence(self, other: Moments) -> Tensor:
        """KL(N(self) || N(other)) between normal distributions, mean over channels."""
        ratio = self.variance / other.variance
        return 0.5 * (ratio + (self.mean - other.mean) ** 2 / other.variance - 1 - ratio.log()).mean()


class DecoupledMatching(Matching):
    """Losses with the two terms at levels of their own, and with what may stand in the place of DM."""

    def __init__(
        self,
        *args: Any,
        terms: Terms = "both",
        schedule: Schedule = "hybrid",
        common: bool = True,
        moments: Moments | None = None,
        moments_weight: float = 1.0,
        **rest: Any,
    ) -> None:
        """``common``: both terms are divided by the factor of DMD, mean|x - T_w| at the level of DM (of CA where there
        is no DM); otherwise each by that at its own level. ``moments`` are the teacher's, for ``ca+moments``.
        """
        super().__init__(*args, **rest)
        self.terms: Terms = terms
        self.schedule: Schedule = schedule
        self.common, self.moments, self.moments_weight = common, moments, moments_weight

    def times_of(self, reached: Reached) -> tuple[Tensor, Tensor]:
        """(B,) levels of DM and of CA, for a generator called at ``reached.t``; one tensor where they are shared."""
        count, t = len(reached.t), reached.t.cpu()
        if self.schedule == "shared":
            one = self.levels.draw(count, self.rng)
            return one, one
        if self.schedule == "cleaner":
            one = self.levels.draw(count, self.rng, below=t)
            return one, one
        dm = self.levels.draw(count, self.rng)
        return dm, self.levels.draw(count, self.rng, below=t if self.schedule == "hybrid" else None)

    @torch.no_grad()
    def gradient(self, x: Tensor, cond: Condition, reached: Reached) -> Tensor:
        teacher, process, w = self.target(), self.teacher.process, self.guidance
        dm_times, ca_times = self.times_of(reached)
        factor, total, seen = None, torch.zeros_like(x), None
        if self.terms in ("both", "dm"):
            t = dm_times.to(x)
            noised = process.noised(x.detach(), noise_like(x, self.rng), t)
            seen = asked(teacher, noised, t, cond)
            dm = matching_term(seen, self.critic.network(noised, t, cond))
            factor = self._factor(x, seen)
            total = dm / factor if factor is not None else dm
            self._note(dm=gradient_norm(dm))
        if self.terms != "dm":
            if seen is None or ca_times is not dm_times:
                t = ca_times.to(x)
                seen = asked(teacher, process.noised(x.detach(), noise_like(x, self.rng), t), t, cond)
                factor = factor if self.common and factor is not None else self._factor(x, seen)
            ca = augmentation(seen, w)
            total = total + (ca / factor if factor is not None else ca)
            self._note(ca=gradient_norm(ca))
        return total

    def _factor(self, x: Tensor, seen: Asked) -> Tensor | None:
        return normalizer(x, seen.guided(self.guidance)) if self.normalize else None

    def _note(self, **values: Tensor) -> None:
        if self.notes is not None:
            self.notes.add(**values)

    def critic_loss(self, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """As before; the critic of a GAN that stands in the place of DM learns no score, but to tell samples apart."""
        if self.terms != "ca+gan":
            return super().critic_loss(draw, real)
        assert self.adversary is not None
        assert real is not None
        with torch.no_grad():
            x, cond, _ = self.sample(self.generator, draw, real, self.critic_rng)
        return self.adversary.critic_losses(x, cond, real)

    def generator_loss(self, model: Denoiser, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        x, cond, reached = self.sample(model, draw, real, self.rng)
        losses = {"dmd": pulled(x, self.gradient(x, cond, reached))}
        if self.terms == "ca+moments":
            assert self.moments is not None
            losses["moments"] = self.moments_weight * Moments.of(x).divergence(self.moments)
        if self.adversary is not None:
            losses["gan"] = self.adversary.generator_loss(x, cond)
        return losses
