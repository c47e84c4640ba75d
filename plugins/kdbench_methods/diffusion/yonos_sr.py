"""YONOS-SR: one-step super-resolution by distillation across scales.

Noroozi et al., ECCV 2024. A denoiser that has to undo a strong magnification learns badly from the sharp image alone:
at high noise the image is one of many that would do. A denoiser of a weaker magnification sees more, and what it
predicts is a target that belongs to the noise level. So magnifications rise one after the other (section 3.2):

* *scale 2*: D_2 is trained on sharp images x, with z_t = x + t n and the condition y_2, which is x degraded to half
  its sides and magnified again: min w(t) |D_2(z_t, y_2, t) - x|^2;
* *scale 4*: D_4 starts as D_2 and sees the same z_t with y_4, degraded from the same x:
  min w(t) |D_4(z_t, y_4, t) - stopgrad D_2(z_t, y_2, t)|^2; then scale 8 from scale 4 in the same way;
* *one step*: x = D_8(T n, y_8, T), a single step of DDIM from pure noise;
* *decoder* (section 3.3): the denoiser is frozen, and the decoder learns to mend its one-step outputs: L1, a
  perceptual distance and an adversarial loss of patches, against x.

``scales`` with the last one alone is direct training with as many steps. All steps are charged, those of the first
scale and of the discriminator, too.

``evaluate`` adds, of the denoiser without its decoder, PSNR, SSIM, error of the high frequencies and distance of
patches at 1, 2, 4 and 15 steps of DDIM (``psnr_1``, ...), what one step loses against 15 (``psnr_15_gain``), and how
far targets are from the prediction at the noisier half of the levels: of the teacher (``target_spread``), of the sharp
image (``truth_spread``) and their ratio (``spread_ratio``), on validation data. At this scale networks work on pixels,
the decoder is three convolutions, the perceptual features are random, and one step of a small network is close to the
mean of all answers.
"""

import json
from copy import deepcopy
from typing import Literal

import torch
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.denoising import denoising_loss, fitting_loss
from kdbench.tracks.diffusion.blocks.gan import discriminator_loss, generator_loss
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.refinement import PatchDiscriminator, RandomFeatures, Refiner
from kdbench.tracks.diffusion.blocks.turns import alternate, window
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.samplers.decoded import Decoded
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="yonos_sr",
    title="You Only Need One Step: Fast Super-Resolution with Stable Diffusion via Scale Distillation",
    year=2024,
    authors=["Mehdi Noroozi", "Isma Hadji", "Brais Martinez", "Adrian Bulat", "Georgios Tzimiropoulos"],
    venue="ECCV",
    track="diffusion",
    arxiv="2401.17258",
    source="paper",
    tasks=["sr"],
    requires=[],
    tags=["super-resolution", "one-step", "curriculum"],
    claims=[
        Compare(
            metric="psnr_1",
            subject="yonos_sr",
            reference={"method": "yonos_sr", "params": {"scales": [8]}},
            tasks=["sr"],
            note="One step of the denoiser that was distilled across scales beats one that was trained at x8 directly.",
        ),
        Compare(
            metric="psnr_15_gain",
            subject="yonos_sr",
            reference={"method": "yonos_sr", "params": {"scales": [8]}},
            tasks=["sr"],
            direction="min",
            note="The gap shrinks with more steps: 15 of them add less to the distilled denoiser.",
        ),
        Compare(
            metric="spread_ratio",
            subject="yonos_sr",
            reference=1.0,
            tasks=["sr"],
            direction="min",
            note="At high noise the targets of the teacher vary less than the sharp image does.",
        ),
        Compare(
            metric="hf_error",
            subject="yonos_sr",
            reference={"method": "yonos_sr", "params": {"decoder": 0.0}},
            tasks=["sr"],
            direction="min",
            note="The decoder brings back energy at high frequencies.",
        ),
    ],
    departures=[
        "pixels in place of latents: a residual network takes the place of the autoencoder's decoder",
        "denoisers are weighted as those of EDM; the paper predicts velocities of a variance preserving process",
        "the first scale is trained from random weights within the budget; the paper starts with Stable Diffusion",
        "the perceptual distance is that of random features: no pretrained network is at hand",
    ],
)

STEPS = (1, 2, 4, 15)
LEVELS = 8


class YonosSrParams(Params):
    """Scales, their trainings, and the decoder."""

    scales: list[int] = Field([2, 4, 8], min_length=1, max_length=3, description="magnifications, the task's at last")
    target: Literal["teacher", "truth"] = Field(
        "teacher", description="what later scales predict: the output of the scale before, or the sharp image"
    )
    chain: bool = Field(True, description="a scale starts with the weights of the one before; else with fresh ones")
    lr: float = Field(1e-3, gt=0, le=1, description="peak of the learning rate of the denoisers")
    decoder: float = Field(
        0.2, ge=0, le=0.9, description="share of the steps for decoder and discriminator; less than two: none"
    )
    width: int = Field(16, ge=4, le=512, description="channels of the decoder")
    decoder_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the decoder and of its discriminator")
    l1: float = Field(1.0, ge=0, le=1000, description="weight of the absolute error")
    perceptual: float = Field(0.1, ge=0, le=1000, description="weight of the perceptual distance")
    gan: float = Field(0.01, ge=0, le=1000, description="weight of the adversarial loss")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


def stages(scales, factor, steps):
    """(scale, steps) of each training; earlier ones have what does not divide. Raises ``UsageError`` for bad scales."""
    if sorted(set(scales)) != list(scales) or scales[-1] != factor or not set(scales) <= {2, 4, 8}:
        raise UsageError(f"scales rise from 2, 4 or 8 to the task's {factor}, not {list(scales)}")
    if steps < len(scales):
        raise UsageError(f"{steps} steps are less than one for each of {len(scales)} scales")
    each, more = divmod(steps, len(scales))
    return [(scale, each + (number < more)) for number, scale in enumerate(scales)]


def conditioned(kind, x, scale, generator):
    """The condition of sharp images (B, C, H, W) at a magnification, with fresh noise of the degradation."""
    return Condition(len(x), image=kind.degraded(x, scale, generator))


def scale_loss(task, scale, rng, teacher=None, easier=None):
    """Loss of one scale: against the sharp image, or the ``teacher`` that sees the same noised one and an easier y."""

    def loss(model, batch):
        if teacher is None:
            return denoising_loss(model, batch.x, conditioned(task.kind, batch.x, scale, rng), rng)
        easy, hard = (conditioned(task.kind, batch.x, each, rng) for each in (easier, scale))
        return fitting_loss(model, lambda z, t, _: teacher(z, t, easy), batch.x, hard, rng)

    return loss


def across_scales(task, params, steps):
    """The denoiser of the last scale, and the one before it (None where there is a single scale)."""
    rng, network, before = task.generator("scales"), task.teacher_init(), None
    for number, (scale, count) in enumerate(stages(params.scales, task.spec.data.factor, steps)):
        if number:
            before = network
            network = deepcopy(before).requires_grad_(True) if params.chain else task.teacher_init()
        teacher = before if params.target == "teacher" else None
        loss = scale_loss(task, scale, rng, teacher, params.scales[number - 1])
        recipe = {"lr": params.lr, "schedule": "cosine", "warmup": 0.02}
        fitted = task.fit(network, loss, steps=count, ema=window(params.ema, count), tag=f"x{scale}", **recipe)
        network = fitted.ema.requires_grad_(False).eval()
    return network, before


def refined(task, params, network):
    """A decoder of the one-step outputs of a frozen denoiser, trained with a discriminator in turns."""
    rng, channels, start = task.generator("decoder"), task.shape[0], task.process.t_max
    features = task.place(RandomFeatures(channels))
    with task.seeded("decoder"):
        decoder, discriminator = task.place(Refiner(channels, params.width)), task.place(PatchDiscriminator(channels))
    critic = Critic(discriminator, lr=params.decoder_lr)

    @torch.no_grad()
    def outputs(x):
        cond = conditioned(task.kind, x, task.spec.data.factor, rng)
        return network(task.process.prior(noise_like(x, rng)), start, cond)

    def critic_loss(draw, real):
        with torch.no_grad():
            made = decoder(outputs(real.x))
        return {"gan": discriminator_loss(discriminator(real.x), discriminator(made))}

    def decoder_loss(model, draw, real):
        made = model(outputs(real.x))
        return {
            "l1": params.l1 * F.l1_loss(made, real.x),
            "perceptual": params.perceptual * features.distance(made, real.x),
            "gan": params.gan * generator_loss(discriminator(made)),
        }

    options = {"ratio": 1, "real": True, "lr": params.decoder_lr, "ema": params.ema, "tag": "decoder"}
    return alternate(task, decoder, critic, critic_loss, decoder_loss, **options).ema.requires_grad_(False).eval()


@torch.no_grad()
def spreads(task, network, teacher, scales):
    """How far targets are from the prediction of the last scale, by noise level, on validation data.

    One row for each of the noisier half of the levels: ``t``, mean squared distance of the prediction to the
    ``teacher``'s, and to the sharp image (``truth``).
    """
    rng, x, rows = task.generator("spreads"), task.split("val").x, []
    for t in task.process.grid(2 * LEVELS)[:LEVELS].tolist():
        easy, hard = (conditioned(task.kind, x, scale, rng) for scale in scales[-2:])
        z = task.process.noised(x, noise_like(x, rng), t)
        found = {"teacher": teacher(z, t, easy), "truth": x}
        mine = network(z, t, hard)
        rows.append({"t": t} | {name: float(F.mse_loss(mine, target)) for name, target in found.items()})
    return rows


@hookimpl
def train(task, params):
    total = task.budget.steps()
    last = int(total * params.decoder)
    last = last if last >= 2 else 0  # one update of the decoder and one of the discriminator, or none
    network, before = across_scales(task, params, total - last)
    rows = [] if before is None else spreads(task, network, before, params.scales)
    task.artifact("spreads.json").write_text(json.dumps(rows, indent=1) + "\n")
    sampler = FewStep(network, [task.process.t_max], "jump")
    return Decoded(sampler, refined(task, params, network)) if last else sampler


@hookimpl
def evaluate(task, model):
    values = dict(task.score(model))
    network = (model.sampler if isinstance(model, Decoded) else model).experts[0]
    for count in STEPS:
        sampler = FewStep(network, task.process.grid(count)[:-1].tolist(), "jump")
        found = task.kind.compare(task, sampler, "test")[0]
        values |= {f"{name}_{count}": found[name] for name in ("psnr", "ssim", "hf_error", "fd_patch")}
    values["psnr_15_gain"] = values["psnr_15"] - values["psnr_1"]
    rows = json.loads(task.artifact("spreads.json").read_text())
    if rows:
        teacher, truth = (sum(row[name] for row in rows) / len(rows) for name in ("teacher", "truth"))
        values |= {"target_spread": teacher, "truth_spread": truth, "spread_ratio": teacher / truth}
    return values
