"""INFER: inter-class feature compensators.

A synthetic image usually serves one class. Here a perturbation u serves all classes: it is added to one real image
x_{c,k} of each class c and, with one network f_m of M that know the data, minimises

    L(u_{k,m}) = mean_c CE(f_m(roll(x_{c,k} + u_{k,m})), c) + r_bn sum_l w_l r_l,    w_1 = 10, others 1

(r_l: distance of the batch's statistics at the input of the l-th batch normalisation to those of training). A
compensator costs 1/C image a class, so that n0 = floor(IPC / (M/C + 1)) real images of a class, with their M n0
compensators, have the size of IPC images, while networks learn from the n0 (M + 1) images x, x + u_1, ..., x + u_M of
each class.

Labels are the mean logits of the M networks for each image as it is, stored once. Images are mixed in pairs, and labels
with them: label(lam a + (1 - lam) b) = lam label(a) + (1 - lam) label(b); the student minimises
KL(softmax(label / T) || softmax(z / T)). With ``labels="batches"`` the networks label each mixed image instead.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.compensators import base_images, compensate, rows_with
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.margin import boundary_margin
from kdbench.tracks.dataset_distillation.distilled.compensated import Compensated
from kdbench.tracks.dataset_distillation.evaluate.images import content, learn

PAPER = Paper(
    slug="infer",
    title="Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature Compensator",
    authors=["Xin Zhang", "Jiawei Du", "Ping Liu", "Joey Tianyi Zhou"],
    year=2025,
    venue="ICLR 2025",
    arxiv="2408.06927",
    track="dataset_distillation",
    source="code",
    tasks=["digits", "shapes", "hf-images"],
    requires=["logits", "weights"],
    tags=["statistics-matching", "soft-labels", "ensemble"],
    claims=[
        Compare(
            metric="accuracy",
            subject="infer",
            reference={
                "method": "random_soft",
                "params": {
                    "labels": "static",
                    "members": 4,
                    "mix": "mixup",
                    "alpha": 0.8,
                    "temperature": 30.0,
                },
            },
            tasks=["digits", "shapes"],
            note="Compensators are worth more than as many real images with the same labels.",
        ),
        Compare(
            metric="label_floats",
            subject="infer",
            reference="cv_dd",
            tasks=["digits", "shapes"],
            kind="ratio",
            margin=0.1,
            direction="min",
            note="Static labels of single images take a small part of what labels of every batch take.",
        ),
    ],
    departures=[
        "compensators of one network are optimised in the same steps, each with the statistics of its own batch",
        "shifts are cyclic by up to an eighth of the side in both directions; in the released code by 0 to 4 pixels",
        "networks learn for a number of updates that does not depend on the size of the set, with static labels, too",
        "the student of the last update is scored; the released code reports its best test epoch",
    ],
)


class InferParams(Params):
    """Compensators and labels."""

    members: int = Field(
        4, ge=1, le=64, description="M: networks that make compensators and labels; at most the task's committee"
    )
    shared: bool = Field(
        True, description="one compensator for all classes; false: one for each class, at its full cost"
    )
    iterations: int = Field(200, ge=1, le=100000, description="updates of a compensator, within the task's steps")
    lr: float = Field(0.25, gt=0, le=10, description="of the compensators (Adam)")
    r_bn: float = Field(1.0, ge=0, le=100, description="weight of the distance of batch statistics")
    labels: Literal["static", "batches"] = Field(
        "static", description="of each image, stored once; or of every mixed batch (dynamic)"
    )
    alpha: float = Field(0.8, gt=0, le=10, description="of the Beta distribution of mixup")
    temperature: float = Field(30.0, gt=0, le=100, description="T: of labels and student")


@hookimpl
def train(task, params):
    networks = list(task.committee())[: params.members]
    count = base_images(task.ipc, len(networks), task.classes, shared=params.shared)
    real, classes = task.split("train"), torch.arange(task.classes, device=task.device)
    base = real.x[random_rows(real.y, count, task.generator("base"))].unflatten(0, (count, task.classes))
    steps = max(1, min(params.iterations, task.budget.steps() // len(networks)))
    compensators = [
        compensate(
            task,
            base,
            classes,
            network,
            steps=steps,
            lr=params.lr,
            r_bn=params.r_bn,
            shared=params.shared,
            purpose=f"compensator/{m}",
        )
        for m, network in enumerate(networks)
    ]
    members = tuple(range(len(networks)))
    labelling = Labelling(params.labels, members, temperature=params.temperature, mix="mixup", alpha=params.alpha)
    rows = rows_with(count, task.classes, len(networks), shared=params.shared).to(task.device)
    low, high = task.range
    return Compensated(base.flatten(0, 1), classes.repeat(count), labelling, torch.cat(compensators), rows, low, high)


@hookimpl
def evaluate(task, model):
    """Beside the official metrics: what the set is made of, and how far test images are from decision boundaries."""
    images, classes, labelling, updates = content(task, model)
    augmented = task.spec.evaluation.augment
    network = learn(
        task, images, classes, labelling, updates, augmented=augmented, arch=task.spec.student, seed=task.seed
    )
    return task.score(model) | {
        "margin": float(boundary_margin(network, task.split("test").x).mean()),
        "images_learned": float(len(images)),
        "images_kept": float(len(model.base)),
        "compensators": float(len(model.shared)),
        "compensator_norm": float(model.shared.flatten(1).norm(dim=1).mean()),
    }
