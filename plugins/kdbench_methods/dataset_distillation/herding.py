"""Real images whose mean follows the mean of their class, in the teacher's features."""

from kdbench import Baseline, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import by_class, herding
from kdbench.tracks.dataset_distillation.blocks.features import features
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="herding",
    title="Herding",
    track="dataset_distillation",
    tasks=["images"],
    requires=["features"],
    tags=["selection"],
    reference="Welling, ICML 2009",
)


@hookimpl
def train(task):
    real = task.split("train")
    found = features(task.teacher(), real.x)
    rows = by_class(real.y, task.ipc, lambda own, count: own[herding(found[own], count)])
    return ImageSet(real.x[rows], real.y[rows])
