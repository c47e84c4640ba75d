"""Uniformly random actions: 0 on the scale of normalised scores."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="random",
    title="Random actions",
    track="policy",
    tasks=["*"],
    tags=["reference-point"],
)


class RandomParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return task.floor()
