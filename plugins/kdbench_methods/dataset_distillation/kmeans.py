"""Real images nearest to the centroids of k-means clusters of each class, in the teacher's features."""

from kdbench import Baseline, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import by_class, nearest_to_centroids
from kdbench.tracks.dataset_distillation.blocks.features import features
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="kmeans",
    title="Nearest real images to k-means centroids",
    track="dataset_distillation",
    tasks=["images"],
    requires=["features"],
    tags=["selection"],
)


@hookimpl
def train(task):
    real, seed = task.split("train"), task.stream("clusters")
    found = features(task.teacher(), real.x)
    rows = by_class(real.y, task.ipc, lambda own, count: own[nearest_to_centroids(found[own], count, seed)])
    return ImageSet(real.x[rows], real.y[rows])
