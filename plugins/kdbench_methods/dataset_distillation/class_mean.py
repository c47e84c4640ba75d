"""Mean images: those of random parts of each class, as many as may be kept.

With one image a class it is the mean of the class. Where a class has several, its images are dealt at random into as
many parts, and each part gives its mean.
"""

import torch

from kdbench import Baseline, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import by_class
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="class_mean",
    title="Mean images",
    track="dataset_distillation",
    tasks=["images"],
    tags=["selection"],
)


@hookimpl
def train(task):
    real, generator = task.split("train"), task.generator("parts")
    parts: list[torch.Tensor] = []

    def deal(own: torch.Tensor, count: int) -> torch.Tensor:
        shuffled = own[torch.randperm(len(own), generator=generator).to(own.device)]
        parts.append(torch.stack([real.x[part].mean(0) for part in shuffled.tensor_split(count)]))
        return own[:count]  # one row a part, for its class

    rows = by_class(real.y, task.ipc, deal)
    return ImageSet(task.pixels(torch.stack(parts, 1).flatten(0, 1)), real.y[rows])
