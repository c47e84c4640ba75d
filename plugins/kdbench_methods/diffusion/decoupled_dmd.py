"""Decoupled DMD: augmentation by guidance drives few-step distillation, distribution matching keeps it in bounds.

Liu et al., ICLR 2026. In practice the teacher of DMD is guided and the critic is not. With T_c, T_0 the teacher with
and without its condition, F_c the critic and w the scale, the direction of a sample is then

    T_w - F_c = [T_c - F_c] + (w - 1) [T_c - T_0] = DM + CA.

CA, of which the theory knows nothing, turns a model of many steps into one of few; DM repairs what CA spoils. So the
two may have levels of noise of their own: DM at any level, CA at levels cleaner than the one that the generator is
called at, each with its own noise (``hybrid``). The regularizer may be another one: the KL divergence of each channel's
mean and variance to those of the teacher's samples, or a GAN.

Inputs of the N steps are simulated, and the critic has K updates for each of the generator, as in ``dmd2``.

``evaluate`` adds, for images, ``saturation`` (share of pixels beyond 0.95), ``saturation_gap`` and ``contrast_gap`` to
real images, ``band0`` ... ``band3`` (ln of the power over that of real images, by frequency); and ``early_fd`` and
``early_prompt_accuracy``, means of the validated values over the first half of the updates.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.decoupled import DecoupledMatching, Moments
from kdbench.tracks.diffusion.blocks.gan import new_adversary
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.progress import Progress, early, early_updates
from kdbench.tracks.diffusion.blocks.turns import alternate, generator_updates
from kdbench.tracks.diffusion.evaluate.saturation import drift
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="decoupled_dmd",
    title="Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the Shield",
    year=2026,
    authors=[
        "Dongyang Liu",
        "Peng Gao",
        "David Liu",
        "Ruoyi Du",
        "Zhen Li",
        "Qilong Wu",
        "Xin Jin",
        "Sihan Cao",
        "Shifeng Zhang",
        "Hongsheng Li",
        "Steven Hoi",
    ],
    venue="ICLR",
    track="diffusion",
    arxiv="2511.22677",
    source="paper",
    tasks=["attributes", "digits"],
    requires=["weights"],
    tags=["score-distillation", "guidance", "few-step"],
    claims=[
        Compare(
            metric="early_prompt_accuracy",
            subject={"method": "decoupled_dmd", "params": {"terms": "ca"}},
            reference={"method": "decoupled_dmd", "params": {"terms": "dm"}},
            tasks=["attributes"],
            note="CA alone makes samples follow prompts sooner than DM alone.",
        ),
        Compare(
            metric="contrast_gap",
            subject="decoupled_dmd",
            reference={"method": "decoupled_dmd", "params": {"terms": "ca"}},
            tasks=["attributes"],
            direction="min",
            note="Without DM contrast drifts away.",
        ),
        Compare(
            metric="saturation_gap",
            subject="decoupled_dmd",
            reference={"method": "decoupled_dmd", "params": {"terms": "ca"}},
            tasks=["attributes"],
            direction="min",
            note="Without DM pixels saturate.",
        ),
        Compare(
            metric="fd",
            subject={"method": "decoupled_dmd", "params": {"terms": "ca+moments"}},
            reference={"method": "decoupled_dmd", "params": {"terms": "ca"}},
            tasks=["attributes"],
            note="Moments of the teacher's samples keep it in bounds, too.",
        ),
        Compare(
            metric="fd",
            subject="decoupled_dmd",
            reference={"method": "decoupled_dmd", "params": {"schedule": "shared"}},
            tasks=["attributes"],
            note="Levels of their own are better than one level for both terms.",
        ),
    ],
    departures=[
        "both terms are divided by the mean of |x - T_w| at the level of DM: how they are scaled is not published",
        "moments are those of a few hundred unguided samples of the teacher, as DM knows no guidance",
        "variants without a critic make as many updates of the generator as the others, and no more",
        "four steps of 16 x 16 pixels and w = 4; the paper distils text-to-image models of a thousand pixels",
    ],
)


class DecoupledDmdParams(Params):
    """Terms, levels, turns and steps."""

    terms: Literal["both", "ca", "dm", "ca+moments", "ca+gan"] = Field(
        "both", description="terms of the direction, and what stands in the place of DM"
    )
    schedule: Literal["shared", "cleaner", "independent", "hybrid"] = Field(
        "hybrid",
        description="levels: one for both terms, one cleaner than the input, one each, or DM any and CA cleaner",
    )
    common: bool = Field(True, description="one normalizer for both terms; otherwise each its own")
    normalize: bool = Field(True, description="divide a sample's gradient by the mean of |x - T_w|")
    guidance: float = Field(4.0, ge=1, le=50, description="scale of the teacher's guidance (w)")
    steps: int = Field(4, ge=1, le=64, description="steps of the generator (N)")
    ratio: int = Field(5, ge=1, le=100, description="updates of the critic for each of the generator (K)")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the critic")
    moments_weight: float = Field(0.1, gt=0, le=1000, description="weight of the divergence of moments")
    moments_samples: int = Field(256, ge=2, le=100000, description="samples of the teacher that moments are taken of")
    gan_weight: float = Field(1e-2, gt=0, le=100, description="weight of the generator's adversarial loss, with ca+gan")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the generator; 0: the task's")
    least: float = Field(0.02, ge=0, le=0.5, description="cleanest level, as a share of the grid")
    most: float = Field(0.98, ge=0.6, le=1, description="noisiest level, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


@torch.no_grad()
def teacher_moments(task, count):
    """Of unguided samples of the teacher with all its steps."""
    generator = task.generator("moments")
    cond = task.kind.conditions(count, generator).to(task.device)
    noise = torch.randn(count, *task.shape, generator=generator).to(task.device)
    return Moments.of(task.official_teacher(guidance=1.0).sample(noise, cond, generator).x)


@hookimpl
def train(task, params):
    generator, notes = task.student(), Notes()
    critic, adversary, moments = None, None, None
    if params.terms in ("both", "dm", "ca+gan"):
        network = task.score_network()
        if params.terms == "ca+gan":
            adversary = new_adversary(task, network, critic_weight=1.0, generator_weight=params.gan_weight, notes=notes)
        critic = Critic(network, lr=params.critic_lr, modules=[] if adversary is None else [adversary.gan.heads])
    if params.terms == "ca+moments":
        moments = teacher_moments(task, params.moments_samples)
    times = student_times(task.process, params.steps, params.start or task.sigma_init)
    matching = DecoupledMatching(
        task,
        generator,
        critic,
        times=times,
        guidance=params.guidance,
        normalize=params.normalize,
        least=params.least,
        most=params.most,
        adversary=adversary,
        notes=notes,
        terms=params.terms,
        schedule=params.schedule,
        common=params.common,
        moments=moments,
        moments_weight=params.moments_weight,
    )
    progress = Progress(task, FewStep(generator, times), early_updates(task, params.ratio))
    result = alternate(
        task,
        generator,
        critic,
        matching.critic_loss,
        matching.generator_loss,
        ratio=0 if critic is None else params.ratio,
        updates=generator_updates(task, params.ratio),
        real=adversary is not None,
        lr=params.lr,
        ema=params.ema,
        notes=notes,
        state=[progress, *([] if adversary is None else adversary.parts)],
        on_step=progress,
    )
    progress.leave()
    return FewStep(result.ema, times)


@hookimpl
def evaluate(task, model):
    values = task.score(model) | early(task, "prompt_accuracy")
    if len(task.shape) == 3:
        real = task.split("test").x.cpu()
        values |= drift(task.samples(model, len(real), split="test").x.cpu(), real)
    return values
