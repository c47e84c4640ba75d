"""Logit Standardization in Knowledge Distillation (Sun et al., CVPR 2024).

A shared temperature makes the student match the range and variance of the teacher's logits, which a small network
cannot and need not. So every logit vector is standardised before any logit loss:

    Z(z) = (z - mean(z)) / (1e-7 + std(z)),   per sample, for each network with its own statistics
    L = w_ce CE(z_s, y) + w_kd tau^2 KL(softmax(Z(z_t) / tau) || softmax(Z(z_s) / tau))

which is a sample-wise temperature tau std(z) that differs between the networks (section 4, algorithm 1). The loss is
unchanged under z -> a z + b of either network, and its gradient is orthogonal to the centred logits: the student's
logit range is left free. Cross-entropy and inference use the raw logits.

Host losses: ordinary KD, DKD, DIST, MLKD (its instance level alone is standardised), CTKD (a learned temperature that
multiplies tau), and PLD, where the teacher's weights alone are standardised. ``preprocess`` gives the normalisations
that the paper's choice is compared with.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.logits import (
    LearnedTemperature,
    correlation_gap,
    cross_entropy,
    dist,
    dkd,
    hard_labels,
    kd_kl,
    zscore,
)
from kdbench.losses.ranking import discordance, weighted_list_loss
from kdbench.training.schedules import CosineRamp, Ramp, Watch

PAPER = Paper(
    slug="logit_standardization",
    title="Logit Standardization in Knowledge Distillation",
    year=2024,
    authors=["Shangquan Sun", "Wenqi Ren", "Jingzhi Li", "Rui Wang", "Xiaochun Cao"],
    venue="CVPR 2024",
    arxiv="2403.01427",
    url="https://github.com/sunshangquan/logit-standardization-KD",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "divergence", "temperature"],
    claims=[
        Compare(
            metric="top1",
            subject="logit_standardization",
            reference={"method": "kd", "params": {"temperature": 1.0}},
            tasks=["shapetex-large-teacher"],
        ),
        Compare(
            metric="top1",
            subject="logit_standardization",
            reference={"method": "kd", "params": {"temperature": 2.0}},
            tasks=["shapetex-large-teacher"],
        ),
        Compare(metric="top1", subject="logit_standardization", reference="kd", tasks=["shapetex-large-teacher"]),
        Compare(
            metric="top1",
            subject="logit_standardization",
            reference={"method": "kd", "params": {"temperature": 8.0}},
            tasks=["shapetex-large-teacher"],
            note="not worse than ordinary distillation at its best temperature",
        ),
    ],
    departures=[
        "MLKD without the second, strongly augmented view and without the confidence masks of its released code",
        "MLKD averages over its temperatures where the released code sums: with 30 classes the sum does not train",
        "MLKD's levels are scaled by the numbers of samples and classes: made for 100 classes, they fail with 10",
        "unlabelled samples take the teacher's prediction where a host loss needs a target class",
    ],
)

MLKD_TEMPERATURES = (2.0, 3.0, 5.0, 6.0)
"""Beside the base temperature; from the released code of multi-level logit distillation."""
WEIGHTS = {
    "kd": (0.1, 9.0),
    "ctkd": (0.1, 9.0),
    "dkd": (1.0, 9.0),
    "mlkd": (0.1, 9.0),
    "dist": (1.0, 1.0),
    "pld": (0.0, 1.0),
}
"""(w_ce, w_kd) by host. 9 is that of the released recipes: a standardised loss is ten times weaker than at T = 4. DKD
keeps the full cross-entropy of its own recipe, DIST the whole of its own, since correlations have no scale to lose, and
PLD is one loss without any."""


class LogitStandardizationParams(Params):
    """Host loss, pre-processing and weights."""

    host: Literal["kd", "dkd", "dist", "mlkd", "ctkd", "pld"] = Field("kd", description="loss that is plugged into")
    preprocess: Literal["zscore", "mean", "l2", "max", "none"] = Field(
        "zscore", description="what is done to the logits before the loss; the paper's is zscore"
    )
    tau: float = Field(
        2.0,
        gt=0,
        le=100,
        description="base temperature in standard deviations; for pld below 1, or all ranks weigh alike",
    )
    w_ce: float | None = Field(None, ge=0, description="weight of the cross-entropy; null: that of the host's recipe")
    w_kd: float | None = Field(
        None, ge=0, description="weight of the host loss; null: that of the host's recipe, 9 for KD"
    )
    alpha: float = Field(1.0, ge=0, description="DKD: weight of the target-class part, before w_kd")
    beta: float = Field(8.0, ge=0, description="DKD: weight of the other classes' part, before w_kd")
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the steps over which w_kd rises from 0")


def preprocess(logits, how):
    """(B, C) to (B, C): each row standardised, centred, or divided by its norm or its largest absolute value."""
    if how == "zscore":
        return zscore(logits)
    if how == "mean":
        return logits - logits.mean(-1, keepdim=True)
    if how == "l2":
        return F.normalize(logits.float(), dim=-1)
    if how == "max":
        return logits / logits.abs().amax(-1, keepdim=True).clamp(min=1e-7)
    return logits


def mean(terms):
    return torch.stack(terms).mean()


def host_losses(student, teacher, labels, params, factor=1.0):
    """Named, weighted terms of the host loss on raw logits (B, C); ``factor`` multiplies tau (CTKD)."""
    s, t = preprocess(student, params.preprocess), preprocess(teacher, params.preprocess)
    tau, weight = params.tau, WEIGHTS[params.host][1] if params.w_kd is None else params.w_kd
    if params.host == "dkd":
        return {"dkd": weight * dkd(s, t, labels, alpha=params.alpha, beta=params.beta, temperature=tau)}
    if params.host == "dist":
        return {"dist": weight * dist(s, t, temperature=tau)}
    if params.host == "mlkd":
        temperatures = (tau, *(other for other in MLKD_TEMPERATURES if other != tau))
        levels = {
            "instance": mean([kd_kl(s, t, each) for each in temperatures]),
            "batch": mean([correlation_gap(student, teacher, each, "batch") for each in temperatures]),
            "class": mean([correlation_gap(student, teacher, each, "class") for each in temperatures]),
        }
        return {name: weight * level for name, level in levels.items()}
    if params.host == "pld":
        return {"pld": weight * weighted_list_loss(student, t, labels, temperature=tau)}
    return {"kd": weight * kd_kl(s, t, tau * factor)}


@hookimpl
def train(task, params):
    student, steps = task.student(), task.budget.steps()
    w_ce = WEIGHTS[params.host][0] if params.w_ce is None else params.w_ce
    warmup, adversary, watch = Ramp(steps, params.warmup), CosineRamp(steps, 0.5), Watch(task, steps)
    learned = LearnedTemperature().to(task.device) if params.host == "ctkd" else None

    def loss(model, batch):
        logits, teacher = model(batch.x), task.teacher_logits(batch)
        watch.add(student_std=logits.std(-1).mean(), teacher_std=teacher.std(-1).mean())
        factor = learned(adversary.value) if learned else 1.0
        terms = host_losses(logits, teacher, hard_labels(batch.y, teacher), params, factor)
        terms = {name: warmup.value * term for name, term in terms.items()}
        return {"ce": w_ce * cross_entropy(logits, batch.y), **terms}

    def on_step(step):
        for follow in (warmup, adversary, watch):
            follow(step)

    task.fit(student, loss, modules=[learned] if learned else [], on_step=on_step, state=[warmup, adversary, watch])
    return student


@hookimpl
def evaluate(task, model, params):
    """Spread of both networks' logits, and how often each divergence prefers a wrong prediction to a correct one."""
    test = task.split("test")
    student, teacher = task.predict(model, test.x), task.predict(task.teacher(), test.x)
    correct = student.argmax(-1) == test.y
    measured = {
        "student_logit_std": float(student.std(-1).mean()),
        "teacher_logit_std": float(teacher.std(-1).mean()),
        "discordance_shared_temperature": discordance(fkl(student, teacher, temperature=4.0), correct),
        "discordance_standardized": discordance(fkl(zscore(student), zscore(teacher), temperature=params.tau), correct),
    }
    # a student that is always or never right has no discordance
    return task.score(model) | {name: value for name, value in measured.items() if not math.isnan(value)}
