"""Guidance in one evaluation: all weights learn, on noised data, what the guided teacher says.

Stage one of Meng et al., CVPR 2023. The student starts as the teacher and minimises the weighted squared error of
D(x_t, c) against D(x_t, null) + w (D(x_t, c) - D(x_t, null)) at one scale w. It is sampled with the teacher's own
steps, at half the evaluations.

``evaluate`` adds ``error_trajectory`` and ``error_noised``, the squared error of the output against guidance at states
of guided sampling and at noised validation data: only on the latter was it trained.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks.denoising import fitting_loss
from kdbench.tracks.diffusion.blocks.trajectories import replaced_errors
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.samplers.solvers import Solver

BASELINE = Baseline(
    slug="guidance_distill",
    title="Guidance distilled into all weights",
    track="diffusion",
    tasks=["attributes"],
    requires=["weights"],
    tags=["guidance", "many-step"],
    reference="Meng et al., CVPR 2023",
)


class GuidanceDistillParams(Params):
    """Scale and training."""

    guidance: float = Field(0.0, ge=0, le=50, description="scale of guidance; 0: the task's")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged student")


@hookimpl
def train(task, params):
    student, teacher, generator = task.student(), task.teacher(), task.generator("noise")
    w = params.guidance or task.guidance

    def target(x, t, cond):
        return guided(teacher, x, t, cond, w)

    def loss(model, batch):
        return fitting_loss(model, target, batch.x, batch.cond, generator)

    result = task.fit(student, loss, lr=params.lr, ema=params.ema)
    return Solver(result.ema, task.process.grid(task.spec.evaluation.teacher_steps).tolist())


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | replaced_errors(task, model.network, params.guidance or task.guidance)
