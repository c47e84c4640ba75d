"""Stages of a training that makes one adapter fit for several numbers of steps (Ren et al., NeurIPS 2024).

Every stage trains the same network in place, which ends with its averaged weights, and returns a frozen copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch, Draw, Turn
from kdbench.tracks.diffusion.blocks.anysteps import StepAware
from kdbench.tracks.diffusion.blocks.backward import roll
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.dmd import pulled
from kdbench.tracks.diffusion.blocks.gan import new_adversary
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.segmented import Segmented
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.evaluate.rewards import prompt_log_prob

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

Rewards = Mapping[str, Callable[[Tensor, Condition], Tensor]]


def settled(student: StepAware, average: nn.Module | None) -> StepAware:
    """Put averaged weights into the student; a frozen copy with them."""
    assert average is not None
    student.load_state_dict(average.state_dict())
    return deepcopy(student).requires_grad_(False).eval()


# --- consistency --------------------------------------------------------------------------------------------------


def consistency_training(
    task: DiffusionTask,
    student: StepAware,
    stage: Segmented,
    steps: int,
    *,
    gan: float,
    lr: float,
    critic_lr: float,
    ema: float,
) -> StepAware:
    """A stage of segmented consistency; with the weight ``gan`` above 0 a discriminator has half of the updates.

    It reads the teacher's features of the clean samples that the jumps of student (generated) and target (real) imply,
    noised anew.
    """
    tag = f"n{stage.counts[-1]}"
    if not gan:
        found = task.fit(
            student,
            lambda model, batch: stage(model, batch)[0],
            loader=task.train_loader(),
            steps=steps,
            ema=ema,
            on_step=stage.update,
            state=stage.target.parts,
            tag=tag,
            lr=lr,
            schedule="constant",
        )
        return settled(student, found.ema)
    backbone = task.score_network().requires_grad_(False)
    adversary = new_adversary(task, backbone, critic_weight=1.0, generator_weight=gan)
    assert adversary is not None
    critic = Critic(backbone, lr=critic_lr, modules=[adversary.gan.heads])

    def critic_loss(draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        assert real is not None
        with torch.no_grad():
            _, fake, true = stage(student, real)
        return adversary.critic_losses(fake, real.cond, Batch(true, real.cond, real.index))

    def generator_loss(model: StepAware, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        assert real is not None
        loss, fake, _ = stage(model, real)
        return {"tscd": loss, "gan": adversary.generator_loss(fake, real.cond)}

    found = alternate(
        task,
        student,
        critic,
        critic_loss,
        generator_loss,  # type: ignore[arg-type]
        ratio=1,
        steps=steps,
        real=True,
        lr=lr,
        ema=ema,
        on_step=stage.update,
        state=[*stage.target.parts, *adversary.parts],
        tag=tag,
    )
    return settled(student, found.ema)


# --- feedback -----------------------------------------------------------------------------------------------------


def hinge(reward: Tensor, threshold: float) -> Tensor:
    """Scalar mean of what rewards (B,) lack of ``threshold``; those above it are not pushed further."""
    return relu(threshold - reward).mean()


def rewards_of(task: DiffusionTask) -> Rewards:
    """Two rewards (B,) of images (B, C, H, W) for conditions.

    ``aesthetic``: taste, contrast and sharpness. ``perception``: log-probability of the prompt. Raises ``UsageError``
    for data without.
    """
    kind = task.kind
    if not hasattr(kind, "reward"):
        raise UsageError(f"the data of {task.spec.name} have no reward; leave feedback out (feedback: 0)")
    aesthetic, reader = kind.reward(task.device), kind.backbone("labels", task.device)

    def perception(x: Tensor, cond: Condition) -> Tensor:
        assert cond.tokens is not None
        return prompt_log_prob(reader, x.clamp(-1, 1), cond.tokens)

    return {"aesthetic": aesthetic, "perception": perception}


def late_sample(
    model: StepAware, noise: Tensor, cond: Condition, bounds: Mapping[int, Sequence[float]], rng: torch.Generator
) -> Tensor:
    """x_0 (B, *shape) of a random late step of the model's own sampling, with gradient through this step alone.

    ``bounds`` are the times of the steps for each number of steps, one of which is drawn; late is the second half.
    """
    numbers = sorted(bounds)
    count = numbers[int(torch.randint(len(numbers), (), generator=rng))]
    stop = count // 2 + int(torch.randint(count - count // 2, (), generator=rng))
    view = model.at(count)
    reached = roll(view, noise, cond, bounds[count], stop, rng, mode="jump")
    found: Tensor = view(reached.x, reached.t, cond)
    return found


def feedback_training(
    task: DiffusionTask,
    student: StepAware,
    stage: Segmented,
    steps: int,
    *,
    thresholds: Mapping[str, float],
    weight: float,
    lr: float,
    ema: float,
) -> StepAware:
    """Late steps of the model's own chains are pushed to both rewards, as far as ``thresholds``, beside consistency."""
    rewards, rng = rewards_of(task), task.generator("feedback")
    bounds = {count: cut.bounds[:-1].tolist() for count, cut in stage.cuts.items()}

    def loss(model: StepAware, turn: Turn) -> Mapping[str, Tensor]:
        x, cond = late_sample(model, turn.draw.noise, turn.draw.cond, bounds, rng), turn.draw.cond
        pushes = {name: weight * hinge(reward(x, cond), thresholds[name]) for name, reward in rewards.items()}
        return {"tscd": stage(model, turn.reals[-1])[0], **pushes}

    found = task.fit(
        student,
        loss,
        loader=task.turns(0, real=True),
        steps=steps,
        ema=ema,
        on_step=stage.update,
        state=stage.target.parts,
        tag="feedback",
        lr=lr,
        schedule="constant",
    )
    return settled(student, found.ema)


# --- score distillation -------------------------------------------------------------------------------------------


def score_training(
    task: DiffusionTask,
    student: StepAware,
    stage: Segmented | None,
    steps: int,
    *,
    ratio: int,
    anchor: float,
    guidance: float,
    lr: float,
    critic_lr: float,
    ema: float,
) -> StepAware:
    """One-step samples follow the gradient of DMD, held near to what they were by a squared distance of weight
    ``anchor``; beside the consistency loss of ``stage`` for other numbers of steps, where one is given."""
    one = student.at(1)
    before, notes = deepcopy(one).requires_grad_(False).eval(), Notes()
    critic = Critic(task.score_network(), lr=critic_lr)
    matching = Matching(task, one, critic, times=[task.process.t_max], guidance=guidance, notes=notes)

    def generator_loss(model: StepAware, draw: Draw, real: Batch | None) -> Mapping[str, Tensor]:
        x, cond, reached = matching.sample(model.at(1), draw, None, matching.rng)
        losses = {"dmd": pulled(x, matching.gradient(x, cond, reached))}
        losses["anchor"] = anchor * (x - before(reached.x, reached.t, cond)).square().mean()
        return losses if stage is None or real is None else {**losses, "tscd": stage(model, real)[0]}

    found = alternate(
        task,
        student,
        critic,
        matching.critic_loss,
        generator_loss,  # type: ignore[arg-type]
        ratio=ratio,
        steps=steps,
        real=stage is not None,
        lr=lr,
        ema=ema,
        notes=notes,
        on_step=None if stage is None else stage.update,
        state=[] if stage is None else stage.target.parts,
        tag="scores",
    )
    return settled(student, found.ema)
