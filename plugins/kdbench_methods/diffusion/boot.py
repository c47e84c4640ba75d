"""BOOT: data-free distillation of denoising diffusion models with bootstrapping.

Gu et al., 2023 (at ICML 2024 as "Data-free Distillation of Diffusion Models with Bootstrapping"). A consistency model
reads noised data; this student reads noise alone. A DDIM trajectory that began with the noise e is x_t = alpha_t y_t +
sigma_t e: its signal y_t is of low frequency at first, and a sample at last. The student g(e, t, c) learns it from its
own predictions:

* *bootstrapping*: from its own y_t = stopgrad g(e, t) one step of the teacher gives y_s = (1 - k) T(alpha_t y_t +
  sigma_t e, t) + k y_t with k = e^(lambda_s - lambda_t), lambda = log(sigma / alpha) (the Signal-ODE); the loss is
  |g(e, s) - y_s|^2 / delta^2 with s = t - delta for a random t on a grid;
* *boundary*: |g(e, T) - T(e, T)|^2, in every step, or errors of the first times go through to the last;
* the student starts with the teacher's weights, the noise in the place of the state. Guidance is inside T.

One sample is g(e, t_min). No image is ever read.

``evaluate`` adds ``trajectory_error``, the distance of g(e, t) to y_t of DDIM from the same start, mean over times
(``trajectory.json`` has it by time: it grows as errors add up), and ``endpoint_error`` and ``teacher_sw2``, distances
of samples to the teacher's. Pictures of high resolution, where the signal's low frequency matters most, are not here.
"""

import json

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.ema import HalfLife
from kdbench.tracks.diffusion.blocks.signal import bootstrap_loss, boundary, signal_grid, signals
from kdbench.tracks.diffusion.evaluate.agreement import agreement, pair_error
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.networks.maps import FromNoise
from kdbench.tracks.diffusion.samplers.maps import NoiseMap

PAPER = Paper(
    slug="boot",
    title="BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping",
    year=2023,
    authors=["Jiatao Gu", "Shuangfei Zhai", "Yizhe Zhang", "Lingjie Liu", "Josh Susskind"],
    track="diffusion",
    arxiv="2306.05544",
    source="paper",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["trajectory", "one-step", "data-free"],
    claims=[
        Compare(
            metric="fd",
            subject="boot",
            reference="naive_one_step",
            tasks=["digits", "digits-dit"],
            note="Without data it is better than the teacher called once.",
        ),
        Compare(
            metric="sw2",
            subject="boot",
            reference="naive_one_step",
            tasks=["ring", "grid"],
            note="So it is on points, with an exact teacher.",
        ),
        Compare(
            metric="fd",
            subject="boot",
            reference="regression_kd",
            tasks=["digits"],
            kind="ratio",
            margin=2.0,
            note="It is within a factor of two of a student that learns stored pairs of the teacher.",
        ),
        Compare(
            metric="endpoint_error",
            subject="boot",
            reference={"method": "boot", "params": {"boundary": 0.0}},
            tasks=["ring", "digits"],
            direction="min",
            note="Without the boundary loss the student leaves the teacher's trajectories.",
        ),
    ],
    departures=[
        "the boundary keeps its own scale, and the bootstrapping loss is divided by delta^2 in units of the whole grid",
        "the grid of 64 times and steps of one to four of its places are ours",
        "the raw network reads the noise as the prior's state and its output is read as the prior's, at all times",
    ],
)


class BootParams(Params):
    """Grid, losses, training."""

    grid: int = Field(64, ge=2, le=10000, description="steps of the grid of times")
    least_step: int = Field(1, ge=1, le=1000, description="places of the grid that a bootstrapping step spans at least")
    most_step: int = Field(4, ge=1, le=1000, description="places of the grid that a bootstrapping step spans at most")
    boundary: float = Field(1.0, ge=0, le=10000, description="weight of the boundary loss")
    half_life: float = Field(
        0.0, ge=0, le=1e9, description="half-life in images of the averaged student that targets start from; 0: itself"
    )
    heun: bool = Field(False, description="the teacher's step has second order, with two queries")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate; it falls along a cosine")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged student")


def teacher_of(task, cond, guidance):
    """x_0 of the guided teacher for the condition of a batch."""
    return lambda x, t: guided(task.teacher(), x, t, cond, guidance)


@hookimpl
def train(task, params):
    times = signal_grid(task.process, params.grid).to(task.device)
    least, most = min(params.least_step, params.grid), min(max(params.least_step, params.most_step), params.grid)
    generator, guidance = task.generator("times"), params.guidance or task.guidance
    network, rows = FromNoise(task.student()), task.spec.recipe.batch_size
    average = HalfLife(network, params.half_life) if params.half_life else None

    def loss(model, draw):
        def student(noise, t):
            return model(noise, t, draw.cond)

        def start(noise, t):
            return (model if average is None else average.network)(noise, t, draw.cond)

        teacher = teacher_of(task, draw.cond, guidance)
        stride = torch.randint(least, most + 1, (len(draw),), generator=generator)
        place = (torch.rand(len(draw), generator=generator) * (params.grid + 1 - stride)).long()
        parts = [part.to(task.device) for part in (place, stride)]
        errors = bootstrap_loss(
            student, teacher, task.process, draw.noise, times, *parts, target=start, heun=params.heun
        )
        losses = {"bootstrap": errors.mean()}
        if params.boundary:
            goal = boundary(teacher, task.process, draw.noise)
            losses["boundary"] = (
                params.boundary * (model(draw.noise, task.process.t_max, draw.cond) - goal).pow(2).mean()
            )
        return losses

    result = task.fit(
        network,
        loss,
        loader=task.draws(),
        lr=params.lr,
        schedule="cosine",
        ema=params.ema,
        on_step=None if average is None else lambda step: average.update(rows),
        state=[] if average is None else average.parts,
    )
    return NoiseMap(result.ema)


@torch.no_grad()
def drift(task, model, guidance):
    """Distance of the student's signal to the teacher's DDIM trajectory, by time (eight of them)."""
    noise, cond = task.kind.evaluation(min(200, task.spec.evaluation.samples), "test")
    noise, cond = noise.to(task.device), cond.to(task.device)
    times = signal_grid(task.process, 64)
    true = signals(teacher_of(task, cond, guidance), task.process, noise, times)
    places = range(0, len(times), (len(times) - 1) // 8)
    return {f"{times[i]:.4g}": pair_error(model.network(noise, float(times[i]), cond), true[i]) for i in places}


@hookimpl
def evaluate(task, model, params):
    guidance = params.guidance or task.guidance
    table = drift(task, model, guidance)
    task.artifact("trajectory.json").write_text(json.dumps(table, indent=1) + "\n")
    extra = {"trajectory_error": sum(table.values()) / len(table)}
    return task.score(model) | extra | agreement(task, model, guidance)
