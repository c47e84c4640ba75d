"""Distribution matching: mean features of synthetic and real images agree under random networks.

    L = sum_c || mean_{x in real_c} psi(A(x)) - mean_{s in syn_c} psi(A(s)) ||^2

with a new random network psi in every step, and random shifts and rotations A.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.matching import class_means, distribution_loss
from kdbench.tracks.dataset_distillation.blocks.recover import Canvas
from kdbench.tracks.dataset_distillation.blocks.views import augment
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="dm",
    title="Distribution matching",
    track="dataset_distillation",
    tasks=["images"],
    tags=["distribution-matching"],
    reference="Zhao and Bilen, WACV 2023",
)


class DmParams(Params):
    """The updates of the images."""

    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps that is used")
    lr: float = Field(0.05, gt=0, le=10, description="of the pixels (Adam)")
    per_class: int = Field(32, ge=1, le=4096, description="real images of each class in a step")


@hookimpl
def train(task, params):
    real, flip = task.split("train"), task.spec.data.flip
    rows = random_rows(real.y, task.ipc, task.generator("start"))
    canvas, labels = Canvas(real.x[rows]), real.y[rows]
    generator, rng = task.generator("reals"), task.rng("views")
    count = min(params.per_class, int(torch.bincount(real.y).min()))
    low, high = task.range

    def loss(model, batch):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            network = task.place(task.build_student()).requires_grad_(False)
        chosen = random_rows(real.y, count, generator)
        task.meter_reals(len(chosen))
        with torch.no_grad():
            target = network.taps(augment(real.x[chosen], rng, flip=flip)).penult
        found = network.taps(augment(model(), rng, flip=flip)).penult
        return distribution_loss(
            class_means(target, real.y[chosen], task.classes), class_means(found, labels, task.classes)
        )

    task.fit(
        canvas,
        loss,
        loader=[torch.arange(len(labels))],
        steps=task.budget.steps(params.steps_fraction),
        on_step=lambda step: canvas.clamp(low, high),
        lr=params.lr,
    )
    return ImageSet(canvas.pixels.detach(), labels)
