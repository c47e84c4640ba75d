"""The teacher itself, scored like a student: the ceiling of the vision track."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="teacher",
    title="The teacher itself",
    track="vision",
    tasks=[
        "classify",
        "ensemble",
        "hetero",
        "conditional",
        "longtail",
        "noisy",
        "mismatch",
        "multidomain",
        "webly",
        "active",
        "search",
        "shifted",
        "prune",
    ],
    requires=["weights"],
    tags=["ceiling"],
)


class TeacherParams(Params):
    """Nothing to choose."""


@hookimpl
def train(task, params):
    return task.teacher()
