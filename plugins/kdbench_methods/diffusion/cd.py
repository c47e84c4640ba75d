"""Consistency distillation: a jump to the clean sample that is the same from everywhere on the teacher's flow.

On noised data x_t the student's prediction is pulled to what its own averaged weights predict one step of the teacher
further on (DDIM, with guidance where the task has any; Luo et al., 2023). At the clean end that is the teacher's own
prediction, and training carries it up, step by step, to pure noise. Samples of more than one step are noised anew
between the steps.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.consistency import Segments, consistency_loss
from kdbench.tracks.diffusion.blocks.ema import HalfLife
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

BASELINE = Baseline(
    slug="cd",
    title="Consistency distillation",
    track="diffusion",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["consistency", "few-step"],
    reference="Song et al., ICML 2023",
)


class CdParams(Params):
    """Grid, target and distance."""

    grid: int = Field(16, ge=1, le=1000, description="steps that the teacher's flow is cut into; the paper: 18 to 40")
    half_life: float = Field(1000, gt=0, le=1e9, description="images after which weights count half in the target")
    metric: Literal["mse", "huber"] = Field("huber", description="distance of prediction and target")
    c: float = Field(1e-3, gt=0, le=10, description="difference above which the Huber distance is straight")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    steps: int = Field(1, ge=1, le=64, description="steps of the sampler")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged student that is evaluated")


@hookimpl
def train(task, params):
    student, teacher, process = task.student(), task.teacher(), task.process
    target = HalfLife(student, params.half_life, ramp=None)
    cut, w = Segments(process.grid(params.grid), 1), params.guidance or task.guidance
    generator = task.generator("consistency")

    def loss(model, batch):
        steps = cut.draw(len(batch), generator, "bound").to(batch.x.device)
        x = process.noised(batch.x, noise_like(batch.x, generator), steps.t)
        losses, _, _ = consistency_loss(
            lambda x, t: model(x, t, batch.cond),
            lambda x, t: target.network(x, t, batch.cond),
            lambda x, t: guided(teacher, x, t, batch.cond, w),
            process,
            x,
            steps,
            metric=params.metric,
            c=params.c,
        )
        return losses.mean()

    result = task.fit(
        student,
        loss,
        lr=params.lr,
        ema=params.ema,
        on_step=lambda step: target.update(task.spec.recipe.batch_size),
        state=target.parts,
    )
    return FewStep(result.ema, student_times(process, params.steps))
