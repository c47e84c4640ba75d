"""Real images that the teacher is least sure of, moved towards what the teacher recognises."""

import torch
from torch.nn import functional as F

from kdbench import Baseline, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import by_class
from kdbench.tracks.dataset_distillation.blocks.recover import Canvas
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="own_set",
    title="Doubtful images, made clearer",
    track="dataset_distillation",
    tasks=["images"],
    requires=["logits"],
    tags=["selection"],
)


@hookimpl
def train(task):
    real, teacher = task.split("train"), task.teacher()
    doubt = F.cross_entropy(teacher(real.x), real.y, reduction="none")
    rows = by_class(real.y, task.ipc, lambda own, count: own[doubt[own].topk(count).indices])
    canvas, labels = Canvas(real.x[rows]), real.y[rows]
    low, high = task.range
    task.fit(
        canvas,
        lambda model, batch: F.cross_entropy(teacher(model()), labels),
        loader=[torch.arange(len(rows))],
        on_step=lambda step: canvas.clamp(low, high),
    )
    return ImageSet(canvas.pixels.detach(), labels)
