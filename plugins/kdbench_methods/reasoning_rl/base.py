"""The student as it is before any training of the task: the floor."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="base",
    title="The fine-tuned student, not trained further",
    track="reasoning_rl",
    tasks=["*"],
    tags=["no-distillation", "reference-point"],
)


class BaseParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return task.student().eval()
