"""The teacher's weights with as few steps as students have (DDIM): what is lost without any distillation."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.samplers.solvers import Solver

BASELINE = Baseline(
    slug="teacher_few",
    title="The teacher, few steps",
    track="diffusion",
    tasks=["points", "digits", "attributes", "edit", "sr", "hf"],
    requires=["weights"],
    tags=["reference-point"],
    reference="Song et al., ICLR 2021 (DDIM)",
)


class TeacherFewParams(Params):
    """How it is sampled."""

    steps: int = Field(0, ge=0, le=1000, description="steps; 0: the task's number of few steps")


@hookimpl
def train(task, params):
    times = task.process.grid(params.steps or task.spec.evaluation.few).tolist()
    return Solver(task.teacher(), times, "euler", guidance=task.guidance)
