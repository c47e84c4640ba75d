"""The student trained as an ordinary denoiser on the data, without a teacher, and sampled with all steps.

As large as the student, with as many updates; tells whether the size alone is what a student lacks.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks.denoising import denoising_loss
from kdbench.tracks.diffusion.samplers.solvers import Solver

BASELINE = Baseline(
    slug="small_scratch",
    title="A student trained as a denoiser",
    track="diffusion",
    tasks=["points", "digits", "attributes", "edit", "sr"],
    tags=["no-teacher"],
    reference="Karras et al., NeurIPS 2022",
)


class SmallScratchParams(Params):
    """Training."""

    lr: float = Field(1e-3, gt=0, le=1, description="learning rate")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of rows without their condition")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


@hookimpl
def train(task, params):
    student = task.fresh_student()
    generator = task.generator("denoising")

    def loss(model, batch):
        return denoising_loss(model, batch.x, batch.cond, generator, dropout=params.dropout)

    result = task.fit(student, loss, lr=params.lr, ema=params.ema)
    times = task.process.grid(task.spec.evaluation.teacher_steps).tolist()
    return Solver(result.ema, times, guidance=task.guidance)
