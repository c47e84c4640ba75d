"""SRe2L: squeeze, recover, relabel with one network.

A network is trained on the real data (squeeze). Images that start as noise minimise

    CE(f(x), y) + r_bn sum_l w_l (||mu_l(x) - mean_l||_2 + ||sigma^2_l(x) - var_l||_2),    w_1 = 10, others 1,

batch after batch with every class in each (recover). The same network, in evaluation mode, labels every augmented and
cut-mixed batch of the later training (relabel).
"""

from typing import Literal

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.recover import recover, view_of
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="sre2l",
    title="Squeeze, recover and relabel",
    track="dataset_distillation",
    tasks=["images"],
    requires=["logits", "weights"],
    tags=["statistics-matching", "soft-labels"],
    reference="Yin, Xing and Shen, NeurIPS 2023",
)


class Sre2lParams(Params):
    """Recovery and labels."""

    member: int = Field(0, ge=0, le=63, description="network of the committee that is inverted and labels")
    init: Literal["noise", "real"] = Field("noise", description="first images: standard normal, or random real ones")
    lr: float = Field(0.25, gt=0, le=10, description="of the pixels (Adam)")
    r_bn: float = Field(0.01, ge=0, le=100, description="weight of the distance of batch statistics")
    labels: Literal["hard", "batches"] = Field("batches", description="classes alone, or logits of every batch")
    temperature: float = Field(20.0, gt=0, le=100, description="of teacher and student in the divergence")


def first_images(task, init):
    """(ipc, K, C, H, W) images, and the classes (K,) of each row: one of every class."""
    real, classes = task.split("train"), torch.arange(task.classes, device=task.device)
    if init == "noise":
        made = torch.randn(task.ipc, task.classes, *task.shape, generator=task.generator("start"))
        return made.to(task.device), classes
    rows = random_rows(real.y, task.ipc, task.generator("start"))
    return real.x[rows].view(task.ipc, task.classes, *task.shape), classes


@hookimpl
def train(task, params):
    member = params.member % len(task.spec.committee)
    network = task.committee()[member]
    start, classes = first_images(task, params.init)
    steps, view = task.budget.steps() // task.ipc, view_of(crop=False, flip=task.spec.data.flip)
    images = [
        recover(
            task,
            start[k],
            classes,
            [network],
            [1.0],
            steps=max(1, steps),
            lr=params.lr,
            r_bn=params.r_bn,
            view=view,
            purpose=f"recover/{k}",
        )
        for k in range(task.ipc)
    ]
    labelling = Labelling()
    if params.labels == "batches":
        labelling = Labelling("batches", (member,), temperature=params.temperature, mix="cutmix")
    return ImageSet(task.pixels(torch.cat(images)), classes.repeat(task.ipc), labelling)
