"""Turns in which the gradient goes through both score networks: SiD, SIM and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.backward import generated
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import accuracy, discriminator_loss, noised_logits
from kdbench.tracks.diffusion.blocks.gradients import GradientTail
from kdbench.tracks.diffusion.blocks.levels import Levels, noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.sid import omega
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, guided
from kdbench.tracks.diffusion.processes import Time, spread

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

BETAS = (0.0, 0.999)
"""Of Adam, for both networks: the generator's target moves with the critic, and momentum would follow an old one."""
DROPPED = 0.1
"""Share of rows that a guided critic is trained on without their condition (released code of SiD-LSG)."""

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(x, real, fake, t, logits) -> (B,) loss: samples, both predictions of x_0, times, logits (B, maps) of the heads."""


class ScoreIdentity:
    """Losses of critic and generator, for :func:`~kdbench.tracks.diffusion.blocks.turns.alternate`.

    The critic learns to denoise the generator's samples at the levels that teachers are trained at. The generator's
    loss is an ``objective`` of its samples and of what teacher and critic predict of one noised version of them; the
    parameters of both are frozen, and the gradient reaches the samples through both. With several ``times`` the samples
    are a uniform mixture of the generator's steps: each row stops at a step of its own, with the earlier ones simulated
    without gradient.

    With ``heads`` the critic is a discriminator, too: its features at the same noised samples give logits.
    """

    def __init__(
        self,
        task: DiffusionTask,
        generator: Denoiser,
        critic: Critic,
        objective: Objective,
        *,
        times: Sequence[float],
        least: float = 0.0,
        most: float = 0.8,
        guidance: float = 1.0,
        guidance_range: float = 0.0,
        fake_training: float = 1.0,
        fake_guidance: float = 1.0,
        fake_null: bool = False,
        scale: float = 1.0,
        heads: nn.Module | None = None,
        gan_weight: float = 0.0,
        gan_critic_weight: float = 1.0,
        tail: GradientTail | None = None,
        notes: Notes | None = None,
    ) -> None:
        """``guidance`` is the teacher's scale, drawn for each sample up to ``guidance_range`` above it.

        ``fake_training`` and ``fake_guidance`` are the critic's scales in its own turn and in the generator's (kappa_1
        and kappa_2 = kappa_3 of SiD-LSG); ``fake_null`` takes the condition from the critic in both. ``scale`` is a
        factor of the generator's loss, which is a mean over samples. ``gan_weight`` is that of softplus(-logit) / omega
        times the pixels of a sample, ``gan_critic_weight`` that of the cross entropy in the critic's turn. ``tail`` and
        ``notes`` watch the gradients of samples.
        """
        self.generator, self.critic, self.objective, self.times = generator, critic, objective, list(times)
        self.teacher, self.process = task.teacher(), task.process
        self.levels = Levels(task.process, least, most)
        self.guidance, self.guidance_range = guidance, guidance_range
        self.fake_training, self.fake_guidance, self.fake_null = fake_training, fake_guidance, fake_null
        self.scale, self.heads = scale, heads
        self.gan_weight, self.gan_critic_weight = gan_weight, gan_critic_weight
        self.tail, self.notes = tail, notes
        self.critic_rng, self.rng = task.generator("critic"), task.generator("generator")

    # --- samples ------------------------------------------------------------------------------------------------------

    def sample(self, model: Denoiser, draw: Draw, rng: torch.Generator) -> Tensor:
        """x_0 (B, *shape) of one call of the generator: with several steps, at a random one for every row."""
        rows, steps = len(draw), len(self.times)
        stop = torch.randint(steps, (rows,), generator=rng) if steps > 1 else 0
        return generated(model, draw.noise, draw.cond, self.times, rng, stop=stop)[0]

    def _fake(self, noised: Tensor, t: Tensor, cond: Condition, w: Time) -> tuple[Tensor, Tensor | None]:
        """The critic's guided prediction and, with heads, the logits of the same noised samples."""
        network: Denoiser = self.critic.network  # type: ignore[assignment]
        if self.heads is None:
            return guided(network, noised, t, cond, w), None
        x0, features = network(noised, t, cond, features=True)
        if not isinstance(w, Tensor) and w == 1:
            return x0, self.heads(features)
        return guided(network, noised, t, cond, w), self.heads(features)

    # --- turns --------------------------------------------------------------------------------------------------------

    def critic_loss(self, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """``score``, and with heads ``gan``: real samples are noised with the times and the noise of generated ones."""
        with torch.no_grad():
            x = self.sample(self.generator, draw, self.critic_rng)
        cond = draw.cond.null() if self.fake_null else draw.cond
        if self.fake_training != 1 or self.fake_guidance != 1:
            cond = cond.dropped((torch.rand(len(x), generator=self.critic_rng) < DROPPED).to(x.device))
        t = self.process.training_times(len(x), self.critic_rng).to(x)
        noise = noise_like(x, self.critic_rng)
        found, negative = self._fake(self.process.noised(x, noise, t), t, cond, self.fake_training)
        losses = {"score": (spread(self.process.denoising_weight(t), x) * (found - x) ** 2).mean()}
        if self.heads is None:
            return losses
        assert real is not None
        assert negative is not None
        rows = slice(min(len(x), len(real)))
        shown = real.cond[rows].null() if self.fake_null else real.cond[rows]
        network: Denoiser = self.critic.network  # type: ignore[assignment]
        positive = noised_logits(network, self.heads, real.x[rows], shown, t[rows], noise[rows])
        if self.notes is not None:
            self.notes.add(gan_accuracy=accuracy(positive, negative))
        return losses | {"gan": self.gan_critic_weight * discriminator_loss(positive, negative, "bce") / 2}

    def generator_loss(self, model: Denoiser, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        """``score``, and with a weight ``gan``."""
        x = self.sample(model, draw, self.rng)
        if self.tail is not None:
            self.tail.watch(x, self.notes)
        t = self.levels.draw(len(x), self.rng).to(x)
        noised = self.process.noised(x, noise_like(x, self.rng), t)
        wanted = guided(self.teacher, noised, t, draw.cond, self._teacher_scale(len(x)))
        shown = draw.cond.null() if self.fake_null else draw.cond
        found, logits = self._fake(noised, t, shown, self.fake_guidance)
        losses = {"score": self.scale * self.objective(x, wanted, found, t, logits).mean()}
        if self.gan_weight:
            assert logits is not None
            each = softplus(-logits).mean(1) / omega(x, wanted)
            losses["gan"] = self.gan_weight * x[0].numel() * each.mean()
        return losses

    def learn_alone(self, task: DiffusionTask, steps: int, *, lr: float) -> None:
        """Train the critic for ``steps`` on what the generator makes as it is; charged to ``steps``."""
        modules = [] if self.heads is None else [self.heads]
        task.budget.spend("critic_updates", steps)
        with self.critic.training():
            task.fit(
                self.critic.network,
                lambda network, turn: self.critic_loss(turn.draw, turn.reals[-1] if turn.reals else None),
                loader=task.turns(0, real=self.heads is not None, purpose="alone"),
                steps=steps,
                modules=modules,
                state=[*self.critic.parts, *([] if self.notes is None else [self.notes])],
                tag="alone",
                lr=lr,
                betas=BETAS,
                schedule="constant",
            )

    def _teacher_scale(self, rows: int) -> Time:
        if not self.guidance_range:
            return self.guidance
        above = torch.rand(rows, generator=self.rng) * self.guidance_range
        return (self.guidance + above).to(next(self.generator.parameters()).device)
