"""A random part of the real training set that has the size of the budget, with its true labels."""

from kdbench import Baseline, hookimpl

CARD = Baseline(
    slug="random",
    title="Random real subset",
    track="dataset_distillation",
    tasks=["*"],
    tags=["selection"],
)


@hookimpl
def train(task):
    return task.kind.random(task, task.generator("subset"))
