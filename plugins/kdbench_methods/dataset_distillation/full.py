"""The whole real training set: what a distilled one would be worth if nothing were lost."""

from kdbench import Baseline, hookimpl

CARD = Baseline(
    slug="full",
    title="Whole training set",
    track="dataset_distillation",
    tasks=["*"],
    tags=["reference"],
)


@hookimpl
def train(task):
    return task.kind.whole(task)
