"""Distribution matching distillation as losses for turns: DMD, its few-step form, and its adversarial side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.backward import Reached, generated
from kdbench.tracks.diffusion.blocks.critic import Critic, fake_score_loss
from kdbench.tracks.diffusion.blocks.dmd import dmd_gradient, gradient_norm, predictions, pulled
from kdbench.tracks.diffusion.blocks.gan import Adversary
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.samplers.fewstep import Mode

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


Inputs = Literal["simulated", "noised"]


class Matching:
    """Losses of critic and generator, for :func:`~kdbench.tracks.diffusion.blocks.turns.alternate`.

    The critic learns to denoise what the generator makes, at all levels; the generator is moved by
    :func:`~kdbench.tracks.diffusion.blocks.dmd.dmd_gradient` at levels of a middle range (2 to 98 % in DMD2). With
    several ``times`` both see samples of a random step of simulated inference. Each side has random numbers of its own,
    so that what one draws does not change the other.
    """

    def __init__(
        self,
        task: DiffusionTask,
        generator: Denoiser,
        critic: Critic,
        *,
        times: Sequence[float],
        guidance: float = 1.0,
        target: Callable[[], Denoiser] | None = None,
        normalize: bool = True,
        mode: Mode = "renoise",
        least: float = 0.02,
        most: float = 0.98,
        adversary: Adversary | None = None,
        inputs: Inputs = "simulated",
        notes: Notes | None = None,
    ) -> None:
        """``guidance`` is the teacher's; ``target()`` gives another network in the teacher's place at each update.

        ``inputs`` of the later steps are the generator's own states, or data that are noised to the step's time.
        ``notes`` gets ``gap``, the norm of D_fake - D_real, which says how far generator and teacher are apart, and
        ``gradient``, the norm of what moves the samples.
        """
        self.generator, self.critic, self.times, self.mode = generator, critic, list(times), mode
        self.inputs: Inputs = inputs
        self.teacher = task.teacher()
        self.target = target or (lambda: self.teacher)
        self.guidance, self.normalize, self.adversary, self.notes = guidance, normalize, adversary, notes
        self.levels, self.all_levels = Levels(task.process, least, most), Levels(task.process)
        self.critic_rng, self.rng = task.generator("critic"), task.generator("generator")

    @property
    def needs_data(self) -> bool:
        """Whether samples are made from data."""
        return self.inputs == "noised" and len(self.times) > 1

    def sample(
        self, model: Denoiser, draw: Draw, real: Batch | None, rng: torch.Generator
    ) -> tuple[Tensor, Condition, Reached]:
        """x_0 (B, *shape) of one call of the generator at a random step, its condition, and what it was called on."""
        if not self.needs_data:
            x, reached = generated(model, draw.noise, draw.cond, self.times, rng, mode=self.mode)
            return x, draw.cond, reached
        stop = int(torch.randint(len(self.times), (), generator=rng))
        if stop == 0:
            x, reached = generated(model, draw.noise, draw.cond, self.times, rng, stop=0)
            return x, draw.cond, reached
        assert real is not None
        noised = model.process.noised(real.x, noise_like(real.x, rng), self.times[stop])
        rows = torch.full((len(noised),), stop, device=noised.device)
        reached = Reached(noised, torch.full_like(rows, self.times[stop], dtype=noised.dtype), rows)
        return model(reached.x, reached.t, real.cond), real.cond, reached

    def critic_loss(self, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The critic's, on samples that are made for it without gradient."""
        with torch.no_grad():
            x, cond, _ = self.sample(self.generator, draw, real, self.critic_rng)
        losses = {"score": fake_score_loss(self.critic.network, x, cond, self.all_levels, self.critic_rng)}
        if self.adversary is not None:
            assert real is not None
            losses |= self.adversary.critic_losses(x, cond, real)
        return losses

    def generator_loss(self, model: Denoiser, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """The generator's, on one differentiable call."""
        x, cond, reached = self.sample(model, draw, real, self.rng)
        losses = {"dmd": pulled(x, self.gradient(x, cond, reached))}
        if self.adversary is not None:
            losses["gan"] = self.adversary.generator_loss(x, cond)
        return losses

    def gradient(self, x: Tensor, cond: Condition, reached: Reached) -> Tensor:
        """(B, *shape) what the samples move against; ``reached`` is where the generator was called."""
        t = self.levels.draw(len(x), self.rng).to(x)
        noise = noise_like(x, self.rng)
        pair = predictions(self.target(), self.critic.network, x, cond, t, noise, guidance=self.guidance)
        found = dmd_gradient(x, pair.real, pair.fake, normalize=self.normalize)
        if self.notes is not None:
            self.notes.add(gap=gradient_norm(pair.fake - pair.real), gradient=gradient_norm(found))
        return found
