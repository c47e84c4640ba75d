"""Flow map distillation on data, by the identity of mean velocities.

The mean velocity m(x, t, r) from time t down to r of a straight line obeys m = v - (t - r) dm/dt, the derivative being
along the flow: (dm/dx) v + dm/dt (Geng et al., NeurIPS 2025). States x_t are noised training data, v is the guided
teacher's velocity there; the target is without gradient and the loss weighted by 1 / (|D|^2 + e)^k. One sample is
z - m(z, 1, 0). ``mismatch`` shrinks the data towards 0, as data that the teacher was not trained on.

``evaluate`` adds ``endpoint_error`` and ``teacher_sw2``, distances of samples to the teacher's, which is guided as in
training.
"""

from typing import Literal

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks.flowmap import line_velocity, logit_normal, mean_velocity_loss, on_line
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.evaluate.agreement import agreement
from kdbench.tracks.diffusion.networks.maps import MeanVelocity
from kdbench.tracks.diffusion.samplers.maps import MeanSteps

BASELINE = Baseline(
    slug="meanflow",
    title="Mean flows distilled on data",
    track="diffusion",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["trajectory", "flow-map", "one-step"],
    reference="Geng, Deng, Bai, Kolter, He; NeurIPS 2025, arXiv 2505.13447",
)


class MeanflowParams(Params):
    """Times, target, training."""

    steps: int = Field(1, ge=1, le=64, description="jumps of a sample")
    velocity: Literal["teacher", "data"] = Field(
        "teacher", description="v: the teacher's, or noise minus sample (no distillation)"
    )
    instant: float = Field(0.25, ge=0, le=1, description="share of rows with r = t, where m is v")
    mean: float = Field(0.0, ge=-5, le=5, description="mean of the logit of the times; the paper: -0.4")
    std: float = Field(
        1.6, gt=0, le=5, description="standard deviation of the logit; wide, as a sample begins at t = 1; the paper: 1"
    )
    power: float = Field(1.0, ge=0, le=4, description="exponent of the weight (k); 0: none")
    floor: float = Field(1e-2, gt=0, le=10, description="added to the weight's denominator (e)")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    mismatch: float = Field(0.0, ge=0, le=1, description="the data are multiplied by 1 minus this")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate; it falls along a cosine")
    clip: float = Field(1.0, ge=0, le=1000, description="largest norm of the gradient; 0: any")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged network")


@hookimpl
def train(task, params):
    generator, guidance = task.generator("times"), params.guidance or task.guidance

    def loss(model, batch):
        x0 = (1 - params.mismatch) * batch.x
        ends = torch.stack([logit_normal(len(x0), params.mean, params.std, generator) for _ in range(2)])
        t, r = ends.amax(0), ends.amin(0)
        r = torch.where(torch.rand(len(x0), generator=generator) < params.instant, t, r)
        t, r = t.to(x0), r.to(x0)
        noise = noise_like(x0, generator)
        x = on_line(x0, noise, t)
        v = noise - x0
        if params.velocity == "teacher":
            with torch.no_grad():
                v = line_velocity(task.teacher(), x, t, batch.cond, guidance)
        value, _ = mean_velocity_loss(
            lambda x, t, r: model(x, t, r, batch.cond), x, t, r, v, params.power, params.floor
        )
        return value

    result = task.fit(
        MeanVelocity(task.student()), loss, lr=params.lr, schedule="cosine", clip=params.clip or None, ema=params.ema
    )
    return MeanSteps(result.ema, params.steps)


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | agreement(task, model, params.guidance or task.guidance)
