"""The student before any distillation: what every method of a task starts from."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="student_init",
    title="The student as initialised",
    track="llm",
    tasks=["*"],
    tags=["reference-point"],
)


class StudentInitParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return task.student()
