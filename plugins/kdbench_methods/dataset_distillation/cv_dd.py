"""CV-DD: a committee of networks distils a data set by voting.

The *prior* p_m of a member is measured: data are distilled with the member alone, a student learns from them, and its
validation accuracy in percent points is the prior. Images of each index (one of every class) then minimise

    sum_m w_m (CE(f_m(x), y) + r_bn BN_m(x)),    w = softmax(p / 5) over N = 2 members,

all pairs of members taking turns. They start as parts of real images and are seen through random-resized crops and
shifts. Soft labels are those of batches: all members vote with softmax(p / 10) on every augmented and cut-mixed batch,
and their batch normalisation uses the statistics of each half of the batch (BSSL). Students learn
KL(teacher / T || student / T) at T = 20, the gradients of the halves accumulated, with a rate that falls along a cosine
which may be stretched.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dataset_distillation.blocks.choose import random_rows
from kdbench.tracks.dataset_distillation.blocks.committee import groups, voting_weights
from kdbench.tracks.dataset_distillation.blocks.labelling import Labelling
from kdbench.tracks.dataset_distillation.blocks.recover import recover, view_of
from kdbench.tracks.dataset_distillation.blocks.views import resized_crop
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet
from kdbench.tracks.dataset_distillation.evaluate.images import train_accuracy

PAPER = Paper(
    slug="cv_dd",
    title="Dataset Distillation via Committee Voting",
    authors=["Jiacheng Cui", "Zhaoyi Li", "Xiaochen Ma", "Xinyue Bi", "Yaxin Luo", "Zhiqiang Shen"],
    year=2025,
    track="dataset_distillation",
    arxiv="2501.07575",
    source="code",
    tasks=["images"],
    requires=["logits", "weights"],
    tags=["statistics-matching", "soft-labels", "committee"],
    claims=[
        Compare(
            metric="accuracy",
            subject="cv_dd",
            reference={"method": "cv_dd", "params": {"voting": "single"}},
            tasks=["digits", "shapes"],
            kind="noninferior",
            note="A committee that votes by its priors is at least as good as the mean of its members alone.",
        ),
        Compare(
            metric="cross",
            subject="cv_dd",
            reference={"method": "cv_dd", "params": {"labels": "running"}},
            tasks=["digits", "shapes"],
            kind="noninferior",
            note="Labels by statistics of the batch are at least as good for other architectures.",
        ),
    ],
    departures=[
        "priors are measured with fewer images per class than the final set has, to cost less than the set itself",
        "networks learn by the track's protocol (batch size, updates, augmentation), the same for all methods",
        "labels belong to mixed images, where the released mixup labels come from unmixed ones",
    ],
)


class CvDdParams(Params):
    """Committee, recovery and labels."""

    size: int = Field(2, ge=1, le=8, description="members that recover the images of an index together (N)")
    voting: Literal["prior", "equal", "random", "best", "single"] = Field(
        "prior",
        description="weights by priors, equal or random ones; the best member alone; or one member, the seed's, alone",
    )
    labels: Literal["batch", "running"] = Field(
        "batch", description="statistics that members normalise by as they label"
    )
    recovery_temperature: float = Field(5.0, gt=0, le=1000, description="percent points; of the weights in recovery")
    label_temperature: float = Field(10.0, gt=0, le=1000, description="percent points; of the weights of labels")
    prior_ipc: int = Field(2, ge=1, le=100, description="images per class that priors are measured with")
    lr: float = Field(0.25, gt=0, le=10, description="of the pixels (Adam)")
    r_bn: float = Field(0.01, ge=0, le=100, description="weight of the distance of batch statistics")
    temperature: float = Field(20.0, gt=0, le=100, description="of committee and student in the divergence")
    stretch: float = Field(1.0, ge=1, le=4, description="of the cosine along which the student's rate falls (eta)")


def patches(task, count):
    """(count, K, C, H, W) parts of random real images of each class, the first images of recovery."""
    real = task.split("train")
    rows = random_rows(real.y, count, task.generator("patches"))
    parts = resized_crop(real.x[rows], task.rng("patches"))
    return task.pixels(parts).view(count, task.classes, *task.shape)


def distil(task, params, start, committees, weights, spend, tag):
    """One image of every class an index: images (n, K, C, H, W), each index with its own members and weights."""
    networks, classes = task.committee(), torch.arange(task.classes, device=task.device)
    view, steps = view_of(crop=True, flip=task.spec.data.flip), max(1, task.budget.steps() // task.ipc)
    made = []
    for k, (members, shares) in enumerate(zip(committees, weights, strict=True)):
        models = [networks[m] for m in members]
        made.append(
            recover(
                task, start[k], classes, models, shares, steps=steps, lr=params.lr, r_bn=params.r_bn, view=view,
                purpose=f"{tag}/{k}", spend=spend,
            )
        )  # fmt: skip
    return torch.stack(made)


def labelling_of(params, members, shares):
    """Soft labels of batches by some members."""
    return Labelling(
        "batches",
        tuple(members),
        tuple(shares),
        temperature=params.temperature,
        mix="cutmix",
        statistics=params.labels,
        parts=2,
        stretch=params.stretch,
    )


def measured_priors(task, params):
    """Validation accuracy in percent points of a student of each member's own data and labels."""
    found, count = [], min(params.prior_ipc, task.ipc)
    for m in range(len(task.spec.committee)):
        start = patches(task, count)
        images = distil(task, params, start, [(m,)] * count, [(1.0,)] * count, "aux_steps", f"prior/{m}")
        classes = torch.arange(task.classes, device=task.device).repeat(count)
        own = ImageSet(task.pixels(images.flatten(0, 1)), classes, labelling_of(params, [m], [1.0]))
        found.append(100 * task.validate(own)["accuracy"])
        task.budget.spend("aux_steps", task.spec.evaluation.updates)
    return found


@hookimpl
def train(task, params):
    members, rng = list(range(len(task.spec.committee))), task.rng("committees")
    priors = [0.0] * len(members) if params.voting in ("equal", "single") else measured_priors(task, params)
    if params.voting == "random":
        priors = rng.permutation(priors).tolist()
    if params.voting == "best":
        members = [max(members, key=lambda m: priors[m])]
    elif params.voting == "single":
        members = [task.seed % len(members)]
    chosen = [tuple(members[i] for i in group) for group in groups(len(members), params.size, task.ipc, rng)]
    weights = [voting_weights([priors[m] for m in group], params.recovery_temperature) for group in chosen]
    images = distil(task, params, patches(task, task.ipc), chosen, weights, "steps", "recover")
    shares = voting_weights([priors[m] for m in members], params.label_temperature)
    classes = torch.arange(task.classes, device=task.device).repeat(task.ipc)
    facts = {f"prior_{m}": prior for m, prior in enumerate(priors)}
    return ImageSet(task.pixels(images.flatten(0, 1)), classes, labelling_of(params, members, shares), facts=facts)


@hookimpl
def evaluate(task, model, params):
    own, test = train_accuracy(task, model)
    return task.score(model) | model.facts | {"train_test_gap": own - test}
