"""The teacher itself: the ceiling that students are measured against."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="teacher",
    title="The reinforced teacher",
    track="reasoning_rl",
    tasks=["*"],
    requires=["weights"],
    tags=["reference-point"],
)


class TeacherParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return task.teacher()
