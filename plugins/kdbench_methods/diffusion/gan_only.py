"""A GAN on real data, without any distillation: what the adversarial term of others does alone.

The generator starts as every student of the task. The discriminator is a head on the bottleneck of a copy of the
teacher, which learns with it. Real and generated samples are noised to random levels of the whole range before
(diffusion-GAN; Wang et al., ICLR 2023). The loss is the non-saturating one by default.

``evaluate`` adds ``gan_accuracy_fake``, ``_train`` and ``_val``: the discriminator's on generated, training and unseen
images, whose difference says how much it has memorised.
"""

from typing import Literal

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import new_adversary
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.samplers.fewstep import one_step

BASELINE = Baseline(
    slug="gan_only",
    title="Diffusion-GAN on real data",
    track="diffusion",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["adversarial", "one-step"],
    reference="Goodfellow et al., NeurIPS 2014; Wang et al., ICLR 2023",
)


class GanOnlyParams(Params):
    """Networks, loss and turns."""

    init: Literal["task", "scratch"] = Field("task", description="first weights of the generator: the task's, or fresh")
    trunk: Literal["teacher", "scratch"] = Field("teacher", description="first weights below the discriminator's head")
    loss: Literal["softplus", "hinge", "bce", "lsgan", "wgan"] = Field("softplus", description="adversarial loss")
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="of the labels of real samples, for bce")
    r1: float = Field(0.0, ge=0, le=1000, description="weight of the gradient penalty on real samples (gamma); 0: none")
    every: int = Field(16, ge=1, le=1000, description="updates of the discriminator from one penalty to the next")
    hidden: int = Field(64, ge=0, le=4096, description="width of the discriminator's head; 0: one layer")
    ratio: int = Field(1, ge=1, le=100, description="updates of the discriminator for each of the generator (K)")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the discriminator")
    beta1: float = Field(0.0, ge=0, lt=1, description="first momentum of Adam, of both")
    start: float = Field(0.0, ge=0, le=1000, description="time at which the generator is called; 0: the task's")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


@hookimpl
def train(task, params):
    generator = task.student() if params.init == "task" else task.fresh_student()
    network = task.score_network() if params.trunk == "teacher" else task.teacher_init()
    notes, start, betas = Notes(), params.start or task.sigma_init, (params.beta1, 0.999)
    adversary = new_adversary(
        task,
        network,
        critic_weight=1.0,
        generator_weight=1.0,
        hidden=params.hidden,
        kind=params.loss,
        smoothing=params.smoothing,
        r1=params.r1,
        every=params.every,
        notes=notes,
    )
    critic = Critic(network, lr=params.critic_lr, modules=[adversary.gan.heads], betas=betas)

    def sample(model, draw):
        return model(task.process.prior(draw.noise, start), start, draw.cond)

    def critic_loss(draw, real):
        with torch.no_grad():
            x = sample(generator, draw)
        return adversary.critic_losses(x, draw.cond, real)

    def generator_loss(model, draw, real):
        return {"gan": adversary.generator_loss(sample(model, draw), draw.cond)}

    result = alternate(
        task,
        generator,
        critic,
        critic_loss,
        generator_loss,
        ratio=params.ratio,
        real=True,
        lr=params.lr,
        betas=betas,
        ema=params.ema,
        notes=notes,
        state=adversary.parts,
    )
    diagnosis.leave_values(task, diagnosis.logit_accuracies(task, adversary.gan, generator, [start]))
    return one_step(result.ema, start)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task)
