"""Gradient matching: synthetic images move a network's weights in the direction in which real ones do.

    L = sum_c D(grad_theta L(real_c), grad_theta L(syn_c))

where D sums 1 - cosine over layers and output units. The network learns from the synthetic images between two updates
of them, and is drawn anew after some of these.
"""

import torch
from torch.nn import functional as F

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.matching import gradient_distance
from kdbench.tracks.dataset_distillation.blocks.recover import Canvas
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

CARD = Baseline(
    slug="dc",
    title="Gradient matching",
    track="dataset_distillation",
    tasks=["images"],
    tags=["gradient-matching"],
    reference="Zhao, Mopuri and Bilen, ICLR 2021",
)


class DcParams(Params):
    """The updates of images and of the network."""

    steps_fraction: float = Field(0.1, gt=0, le=1, description="share of the task's steps that is used")
    lr: float = Field(0.05, gt=0, le=10, description="of the pixels (Adam)")
    per_class: int = Field(16, ge=1, le=4096, description="real images of each class in a step")
    reset: int = Field(10, ge=1, le=10000, description="updates of the images until the network is drawn anew")
    network_lr: float = Field(0.01, gt=0, le=1, description="of the network between updates")


@hookimpl
def train(task, params):
    real = task.split("train")
    rows = random_rows(real.y, task.ipc, task.generator("start"))
    canvas, labels = Canvas(real.x[rows]), real.y[rows]
    generator, draws = task.generator("reals"), task.rng("networks")
    count = min(params.per_class, int(torch.bincount(real.y).min()))
    network = task.network(task.spec.student, "networks/first")
    low, high = task.range

    def gradients(x, y, *, graph=False):
        return torch.autograd.grad(F.cross_entropy(network(x), y), list(network.parameters()), create_graph=graph)

    def loss(model, batch):
        chosen = random_rows(real.y, count, generator)
        task.meter_reals(len(chosen))
        total = model().new_zeros(())
        for c in range(task.classes):
            own, mine = chosen[real.y[chosen] == c], labels == c
            target = gradients(real.x[own], real.y[own])
            total = total + gradient_distance(target, gradients(model()[mine], labels[mine], graph=True))
        return total

    def after(step):
        canvas.clamp(low, high)
        if step % params.reset == 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(draws.integers(2**62)))
                fresh = task.build_student()
            network.load_state_dict(fresh.state_dict())
            return
        moves = gradients(canvas.pixels.detach(), labels)
        with torch.no_grad():
            torch._foreach_add_(list(network.parameters()), moves, alpha=-params.network_lr)

    task.fit(
        canvas,
        loss,
        loader=[torch.arange(len(labels))],
        steps=task.budget.steps(params.steps_fraction),
        on_step=after,
        state=[network],
        lr=params.lr,
    )
    return ImageSet(canvas.pixels.detach(), labels)
