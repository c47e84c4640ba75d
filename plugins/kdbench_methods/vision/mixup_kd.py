"""Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study (Choi et al., WACV 2023).

Teachers trained with mixup are smoother, and their soft labels say less (section 3); a student gains from mixup of its
own, but from little of it (section 4). The recipe: partial mixup, and temperatures that are standard deviations.

    x~ = l x_i + (1 - l) x_j,  y~ = l y_i + (1 - l) y_j,  l ~ Beta(a, a) per sample, 1 for a part of the batch
    L = gamma CE(y~, softmax(z_s / std z_s)) + alpha KL(softmax(z_t / std z_t) || softmax(z_s / std z_s))

with the deviations per sample over the classes, no factor T^2, and the gradient flowing through that of the student.
The teacher sees the mixed image. ``fraction`` of the shares are set to 1, at positions drawn with replacement as in the
released code, so that exp(-fraction) of the batch stays mixed: 41 % at 0.9. ``fraction=0`` is full mixup,
``mixing="none"`` none, ``temperature`` a fixed one in place of the deviations: ordinary distillation. ``teacher`` names
one of the task's teachers, such as one trained with mixup: together the cells of the paper's table.

Evaluation uses the raw logits. It adds the teacher's accuracy and smoothness, calibration of the standardised logits,
the entropy of both networks, the spread of their features within classes against that between, and the accuracy of the
student under one-step attacks.
"""

import json
import math
from typing import Literal

import torch
import torch.nn.functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import kd_kl, zscore
from kdbench.tracks.vision import metrics
from kdbench.tracks.vision.batches import Batch
from kdbench.tracks.vision.robustness import LEVELS, fgsm
from kdbench.tracks.vision.teachers import penult_of
from kdbench.training.mixing import Mixed, mix, one_hot
from kdbench.training.state import Values

PAPER = Paper(
    slug="mixup_kd",
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    year=2023,
    authors=["Hongjun Choi", "Eun Som Jeon", "Ankita Shukla", "Pavan Turaga"],
    venue="WACV 2023",
    arxiv="2211.03946",
    url="https://github.com/hchoi71/MIX-KD",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "temperature", "mixup", "augmentation"],
    claims=[
        Compare(
            metric="top1",
            subject={"method": "mixup_kd", "params": {"mixing": "none", "temperature": 4.0}},
            reference={"method": "mixup_kd", "params": {"mixing": "none", "temperature": 4.0, "teacher": "mixup10"}},
            tasks=["shapetex-mixup", "digits-mixup"],
            kind="noninferior",
            margin=0.01,
            note="a teacher trained with mixup is no better for a student without it, and usually worse",
        ),
        Compare(
            metric="top1",
            subject="mixup_kd",
            reference={"method": "mixup_kd", "params": {"fraction": 0.0}},
            tasks=["shapetex-mixup", "digits-mixup"],
            kind="noninferior",
            margin=0.01,
            note="with mixup in the student alone, partial mixup is at least as good as full mixup",
        ),
    ],
    departures=[
        "unlabelled images of a pair add nothing to the mixed target, whose cross-entropy then weighs less",
    ],
)


class MixupKdParams(Params):
    """The cell of the table, mixing, temperatures and weights."""

    teacher: str = Field("default", description="name of the task's teacher, such as mixup10 of shapetex-mixup")
    mixing: Literal["mixup", "cutmix", "none"] = Field("mixup", description="how the student's images are mixed")
    beta: float = Field(1.0, gt=0, le=100, description="a of the Beta(a, a) from which shares are drawn")
    fraction: float = Field(0.9, ge=0, le=1, description="of a batch, for which shares are set to 1; 0: full mixup")
    replacement: bool = Field(True, description="whether the positions of those shares are drawn with replacement")
    temperature: float | None = Field(
        None, gt=0, le=100, description="null: standard deviations; else a fixed one for both networks, with T^2"
    )
    gamma: float = Field(0.1, ge=0, description="weight of the cross-entropy")
    alpha: float = Field(0.9, ge=0, description="weight of the divergence")


def soft_cross_entropy(logits, target):
    """Mean over the batch of -sum_k target_k log softmax(logits)_k; (B, C), (B, C) to a scalar."""
    return -(target * log_softmax(logits)).sum(-1).mean()


def mixup_losses(student, teacher, target, params):
    """Named, weighted terms from logits (B, C) of both networks and mixed targets (B, C)."""
    if params.temperature is None:
        # a shift of the logits is nothing to a softmax: dividing by the deviation is standardising
        student, teacher, temperature = zscore(student), zscore(teacher), 1.0
    else:
        temperature = params.temperature
    return {
        "ce": params.gamma * soft_cross_entropy(student, target),
        "kd": params.alpha * kd_kl(student, teacher, temperature),
    }


@hookimpl
def train(task, params):
    student, rng, seen = task.student(), task.rng("mixing"), Values(mixed=0, samples=0)

    def mixed(batch):
        """The mixed batch and what the teacher says about it."""
        if params.mixing == "none":
            teacher = task.teacher_logits(batch, params.teacher)
            return Mixed(batch.x, one_hot(batch.y, task.num_classes), torch.ones(len(batch))), teacher
        made = mix(
            batch.x,
            batch.y,
            task.num_classes,
            rng,
            alpha=params.beta,
            keep=params.fraction,
            replacement=params.replacement,
            kind=params.mixing,
        )
        unknown = torch.full_like(batch.index, -1)
        return made, task.teacher_logits(Batch(made.x, unknown, unknown, augmented=True), params.teacher)

    def loss(model, batch):
        made, teacher = mixed(batch)
        seen.mixed, seen.samples = seen.mixed + int((made.share < 1).sum()), seen.samples + len(made)
        return mixup_losses(model(made.x), teacher, made.target, params)

    task.fit(student, loss, state=[seen])
    task.artifact("training.json").write_text(json.dumps({"mixed_share": seen.mixed / seen.samples}))
    return student


def smoothness(task, network, test, prefix=""):
    """Accuracy, entropy of the predictions and spread of the features of one network on the test data."""
    logits = task.predict(network, test.x)
    return {
        f"{prefix}top1": metrics.accuracy(logits, test.y),
        f"{prefix}entropy": metrics.mean_entropy(logits),
        f"{prefix}scatter_ratio": metrics.scatter_ratio(penult_of(network, test.x), test.y),
    }


@hookimpl
def evaluate(task, model, params):
    """Smoothness of student and teacher, calibration of standardised logits, accuracy under one-step attacks."""
    test = task.split("test")
    standardised = zscore(task.predict(model, test.x))
    measured = {
        "nll_standardized": metrics.nll(standardised, test.y),
        "ece_standardized": metrics.ece(F.softmax(standardised, -1), test.y),
        "adaptive_ece": metrics.adaptive_ece(F.softmax(task.predict(model, test.x), -1), test.y),
    }
    for level in LEVELS:
        attacked = fgsm(model, test.x, test.y, level / 255)
        measured[f"fgsm{level}_top1"] = metrics.accuracy(task.predict(model, attacked), test.y)
    measured |= smoothness(task, task.teacher(params.teacher), test, "teacher_")
    measured |= smoothness(task, model, test, "student_")
    measured |= json.loads(task.artifact("training.json").read_text())
    # where all features are equal there is no spread to compare with
    return task.score(model) | {name: value for name, value in measured.items() if math.isfinite(value)}
