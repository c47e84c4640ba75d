"""No distillation: the student trained on the labelled images alone, the floor of the vision track."""

from kdbench import Baseline, Params, hookimpl
from kdbench.losses.logits import cross_entropy

BASELINE = Baseline(
    slug="no_kd",
    title="No distillation: cross-entropy on the labels",
    track="vision",
    tasks=[
        "classify",
        "ensemble",
        "hetero",
        "conditional",
        "selfdistill",
        "longtail",
        "noisy",
        "mismatch",
        "multidomain",
        "related",
        "active",
        "search",
        "shifted",
        "prune",
    ],
    tags=["floor"],
)


class NoKdParams(Params):
    """Nothing to choose."""


@hookimpl
def train(task, params):
    student = task.student()
    loader = task.train_loader("labeled")
    task.fit(student, lambda model, batch: cross_entropy(model(batch.x), batch.y), loader=loader)
    return student
