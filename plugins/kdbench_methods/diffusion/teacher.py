"""The teacher with all its steps: what generators of few steps are measured against.

Heun's solver on the task's grid with the task's guidance. ``guidance`` and ``steps`` give the same weights elsewhere.
Evaluations are counted, and a guided step has two.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.spec import CodesTeacher

BASELINE = Baseline(
    slug="teacher",
    title="The teacher, many steps",
    track="diffusion",
    tasks=["*"],
    requires=["weights"],
    tags=["reference-point"],
    reference="Karras et al., NeurIPS 2022 (sampler)",
)


class TeacherParams(Params):
    """How it is sampled."""

    steps: int = Field(0, ge=0, le=1000, description="steps of the solver; 0: the task's")
    guidance: float = Field(-1.0, ge=-1, le=100, description="scale of the guidance, 1 for none; -1: the task's")


@hookimpl
def train(task, params):
    if isinstance(task.spec.teacher, CodesTeacher):
        return task.kind.sampler(task.teacher())
    return task.official_teacher(params.steps or None, None if params.guidance < 0 else params.guidance)
