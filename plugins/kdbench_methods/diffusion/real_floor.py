"""Real samples of the training data, scored like generated ones: what the metrics are of a perfect generator."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.diffusion.samplers.reals import Reals

BASELINE = Baseline(
    slug="real_floor",
    title="Real samples",
    track="diffusion",
    tasks=["points", "digits"],
    tags=["reference-point"],
)


class RealFloorParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    split = task.split("train")
    return Reals(split.x, split.cond.tokens)
