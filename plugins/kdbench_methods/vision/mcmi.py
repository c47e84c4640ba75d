"""Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual Information
(Ye et al., ICLR 2024).

The best target of distillation is the Bayes posterior of the label; a teacher trained by maximum likelihood (MLL)
estimates its peak and loses what sets the images of a class apart. So the trained teacher is fine-tuned to maximise
likelihood and conditional mutual information together (section 4),

    L = mean CE(p_x, y) - lambda mean KL(p_x || q_y)        q_y: mean output of class y, a constant of the gradient

where the second mean is the empirical I(X; Yhat | Y) = H(Yhat | Y) - H(Yhat | X): outputs of one class spread out
around their centroid. Then any distiller teaches the student, by an unchanged recipe. The released code computes the
centroids once, in training mode of the teacher, which is also how it is fine-tuned; refreshing them after each epoch
and following them by a moving average over a few images per class are options. The weights kept are those with the
smallest L on validation data.

Few-shot: ``share`` of the student's images per class. Zero-shot: tasks whose student data lack classes that the teacher
knows. ``teacher`` gives the teachers that the paper's is compared with: the task's own (MLL), the same fine-tuned by
plain cross-entropy, with label smoothing, or with a reward for entropy.

Evaluation adds cross-entropy, conditional mutual information and accuracy of the teacher on the test data before and
after, the probability that it gives the omitted classes on the student's images, and, where labels are noisy at a known
rate, its divergence from the true posterior of the label.
"""

import json
import math
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.centroids import Centroids, conditional_mutual_information
from kdbench.losses.logits import cross_entropy, dist, dkd, hard_labels, kd_kl
from kdbench.tracks.vision.batches import roll
from kdbench.tracks.vision.metrics import accuracy
from kdbench.tracks.vision.teachers import teacher_recipe, train_on
from kdbench.training.best import BestWeights
from kdbench.training.centroids import network_centroids, training_outputs
from kdbench.training.hints import hint_loss
from kdbench.training.selection import entropy, per_class

PAPER = Paper(
    slug="mcmi",
    title="Bayes Conditional Distribution Estimation for Knowledge Distillation "
    "Based on Conditional Mutual Information",
    year=2024,
    authors=["Linfeng Ye", "Shayan Mohajer Hamidi", "Renhao Tan", "En-Hui Yang"],
    venue="ICLR 2024",
    arxiv="2401.08732",
    url="https://github.com/iclr2024mcmi/ICLRMCMI",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy"],
    requires=["logits", "weights"],
    tags=["logits", "teacher-training", "few-shot", "zero-shot"],
    claims=[
        Compare(
            metric="omitted_top1",
            subject="mcmi",
            reference={"method": "mcmi", "params": {"teacher": "mll"}},
            tasks=["shapetex-fewclass"],
            note="classes that the student never saw are recognised more often with the fine-tuned teacher",
        ),
        Compare(
            metric="top1",
            subject={"method": "mcmi", "params": {"share": 0.25}},
            reference={"method": "mcmi", "params": {"share": 0.25, "teacher": "mll"}},
            tasks=["shapetex"],
            note="few-shot: a quarter of the images of each class",
        ),
    ],
    departures=[
        "the best weights by CE - lambda CMI on validation data in place of the last ones",
        "150 steps of fine-tuning in place of 20 epochs, at a fifth of the teacher's own peak rate",
        "the moving average starts from centroids of the data, not from uniform ones",
    ],
)

SMOOTHING, ENTROPY = 0.1, 0.1
"""Label smoothing, and weight of the entropy (Pereyra et al., 2017), of the teachers compared with."""
HINT_DEPTH, HINT_WEIGHT = 0.67, 100.0
"""As of the baseline ``fitnet``."""
CHECKS = 15
"""Times that the teacher is looked at on validation data while it is fine-tuned."""


class McmiParams(Params):
    """The teacher's fine-tuning, the student's data, and the distiller."""

    teacher: Literal["mcmi", "mll", "continued", "label-smoothing", "entropy"] = Field(
        "mcmi", description="how the teacher is fine-tuned; mll: not at all, continued: by cross-entropy alone"
    )
    cmi_weight: float = Field(0.2, ge=0, le=10, description="lambda, of the conditional mutual information")
    centroid_update: Literal["once", "epoch", "ema"] = Field(
        "once", description="whether centroids are kept, computed anew after each epoch, or follow in each step"
    )
    centroid_decay: float = Field(0.9999, ge=0, lt=1, description="of the moving average")
    centroid_samples: int = Field(8, ge=1, le=1000, description="images per class of a step of the moving average")
    finetune_steps: int = Field(150, ge=1, le=1000000, description="optimizer steps of the teacher")
    finetune_rate: float = Field(0.2, gt=0, le=10, description="peak learning rate over that of its first training")
    early_stop: bool = Field(True, description="keep the best weights on validation data, else the last")
    share: float = Field(1.0, gt=0, le=1, description="of the student's images of each class")
    distiller: Literal["kd", "dkd", "dist", "fitnet"] = Field("kd", description="how the student is taught")
    temperature: float | None = Field(
        None, gt=0, le=100, description="of kd, dkd and dist; null: 4, and 1 for dist; high ones flatten any teacher"
    )
    weight: float = Field(0.9, ge=0, le=1, description="kd: of the divergence; the cross-entropy has the rest")


# --- the teacher ------------------------------------------------------------------------------------------------------


def finetune_loss(logits, labels, centroids, params):
    """Named terms of the teacher's loss; logits (B, C), labels (B,), centroids (C, C) or None: of these samples."""
    smoothing = SMOOTHING if params.teacher == "label-smoothing" else 0.0
    terms = {"ce": cross_entropy(logits, labels, smoothing=smoothing)}
    if params.teacher == "mcmi":
        terms["cmi"] = -params.cmi_weight * conditional_mutual_information(logits, labels, centroids)
    elif params.teacher == "entropy":
        terms["entropy"] = -ENTROPY * entropy(F.softmax(logits.float(), -1)).mean()
    return terms


def some_of_each(split, members, count, generator):
    """Rolled images and labels, ``count`` drawn with replacement from each of the positions in ``members``."""
    rows = torch.cat([own[torch.randint(len(own), (count,), generator=generator).to(own.device)] for own in members])
    return roll(split.x[rows], generator), split.y[rows]


def finetune(task, params):
    """A private copy of the teacher, fine-tuned, and the step whose weights it has."""
    teacher, split, val = task.teacher(trainable=True), task.teacher_split(), task.split("val")
    size = teacher_recipe(task.spec).batch_size
    order = torch.randperm(len(split), generator=task.generator("centroids")).to(split.x.device)
    images, labels = roll(split.x[order], task.generator("centroid-views")), split.y[order]

    def passes():
        return zip(images.split(size), labels.split(size), strict=True)

    centroids = Centroids(network_centroids(teacher, passes(), task.num_classes))
    members = [(split.y == c).nonzero().flatten() for c in split.y.unique()]
    draws, best = task.generator("centroid-samples"), BestWeights(teacher)

    def loss(model, batch):
        return finetune_loss(model(batch.x), batch.y, centroids.table, params)

    def look(step):
        with torch.no_grad():
            terms = finetune_loss(task.predict(teacher, val.x), val.y, None, params)
        value = float(sum(terms.values()))
        if best.offer(step, value):
            task.log(step, **{"finetune/best_val_loss": value})

    def on_step(step):
        if params.centroid_update == "ema":
            x, y = some_of_each(split, members, params.centroid_samples, draws)
            centroids.follow(training_outputs(teacher, x), y, params.centroid_decay)
        elif params.centroid_update == "epoch" and step % math.ceil(len(split) / size) == 0:
            centroids.table.copy_(network_centroids(teacher, passes(), task.num_classes))
        if step % max(1, params.finetune_steps // CHECKS) == 0 or step == params.finetune_steps:
            look(step)

    look(0)
    train_on(
        task,
        teacher,
        loss,
        split,
        steps=params.finetune_steps,
        rate=params.finetune_rate,
        tag="finetune",
        on_step=on_step,
        state=[centroids, best],
    )
    if params.early_stop:
        best.restore()
    return teacher, best.step if params.early_stop else params.finetune_steps


# --- the student ------------------------------------------------------------------------------------------------------


def logit_terms(logits, teacher, labels, params):
    """Named terms of kd, dkd and dist; logits and teacher (B, C), labels (B,)."""
    t = params.temperature or (1.0 if params.distiller == "dist" else 4.0)
    if params.distiller == "kd":
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, labels),
            "kd": params.weight * kd_kl(logits, teacher, t),
        }
    if params.distiller == "dkd":
        term = dkd(logits, teacher, hard_labels(labels, teacher), temperature=t)
    else:
        term = dist(logits, teacher, temperature=t)
    return {"ce": cross_entropy(logits, labels), params.distiller: term}


def distil(task, params, teacher):
    """A student taught by a network, or by the task's own teacher where it is None."""
    student, kept = task.student(), None
    if params.share < 1:
        kept = per_class(task.split("train").y.cpu(), params.share, task.generator("few"))
    ask = task.teacher_logits if teacher is None else task.answers(teacher)

    @torch.no_grad()
    def look(batch):
        if teacher is None:
            return task.teacher_taps(batch)
        task.budget.spend("teacher_queries", len(batch))
        return teacher.taps(batch.x)

    def loss(model, batch):
        return logit_terms(model(batch.x), ask(batch), batch.y, params)

    modules = []
    if params.distiller == "fitnet":
        example = next(iter(task.train_loader()))
        with task.seeded("regressor"):
            regressor, loss = hint_loss(student, example, look, depth=HINT_DEPTH, weight=HINT_WEIGHT)
        modules = [regressor]
    task.fit(student, loss, loader=task.train_loader(indices=kept), modules=modules)
    return student


@hookimpl
def train(task, params):
    if params.teacher == "mll":
        return distil(task, params, None)
    teacher, step = finetune(task, params)
    save_file(
        {name: tensor.contiguous() for name, tensor in teacher.state_dict().items()},
        task.artifact("teacher.safetensors"),
    )
    task.artifact("teacher.json").write_text(json.dumps({"step": step, "of": params.finetune_steps}))
    return distil(task, params, teacher)


# --- evaluation -------------------------------------------------------------------------------------------------------


def posterior(truth, classes, rate):
    """True posterior (N, C) of a label that is replaced, at a rate, by a uniformly drawn other class."""
    clean = F.one_hot(truth, classes).double()
    return (1 - rate) * clean + rate / (classes - 1) * (1 - clean)


def about(task, teacher):
    """What a teacher is like on the test data, and on what the student's data lack or mislabel."""
    test, derive = task.split("test"), task.spec.data.derive
    logits = task.predict(teacher, test.x)
    values = {
        "ce": float(F.cross_entropy(logits, test.y)),
        "cmi": float(conditional_mutual_information(logits, test.y)),
        "top1": accuracy(logits, test.y),
    }
    if derive is not None and derive.kind == "fewclass":
        seen = F.softmax(task.predict(teacher, task.split("train").x), -1)
        values["omitted_mass"] = float(seen[:, list(derive.drop)].sum(1).mean())
    if derive is not None and derive.kind == "noisy" and derive.teacher == "same":
        bayes = posterior(task.truth("test"), task.num_classes, derive.rate)
        log_probs = F.log_softmax(logits.double(), -1)
        values["bayes_kl"] = float(F.kl_div(log_probs, bayes, reduction="batchmean"))
    return values


@hookimpl
def evaluate(task, model, params):
    values = {f"teacher_{name}_before": value for name, value in about(task, task.teacher()).items()}
    if params.teacher != "mll":
        tuned = task.teacher(trainable=True)
        tuned.load_state_dict(load_file(task.artifact("teacher.safetensors")))
        values |= {f"teacher_{name}_after": value for name, value in about(task, tuned.eval()).items()}
        values["teacher_step"] = float(json.loads(task.artifact("teacher.json").read_text())["step"])
    return task.score(model) | values
