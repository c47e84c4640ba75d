"""Distillation of a small convolutional network by a larger one: written by hand, with torchdistill, with kdbench.

(1 - w) CE + w T^2 KL, by SGD with Nesterov momentum along a cosine. Run by ``benchmarks/training_step.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from turns import Curve, Turns, orders

TASK = "vision/shapetex"
WEIGHT, TEMPERATURE = 0.9, 4.0
RECIPE = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A scalar from logits of the student (B, C), logits of the teacher (B, C) and labels (B,)."""


def overrides(config: dict[str, Any]) -> dict[str, Any]:
    """How the task is changed for the measurement: a quickly trained teacher, as weights change no time."""
    return {"teacher": {"steps": 20}, "recipe": RECIPE}


def by_hand(logits: Tensor, said: Tensor, labels: Tensor) -> Tensor:
    """The formula as one writes it down."""
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1),
        F.log_softmax(said / TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - WEIGHT) * F.cross_entropy(logits, labels) + WEIGHT * TEMPERATURE**2 * soft


def torchdistill() -> Formula:
    """``KDLoss`` of torchdistill."""
    from torchdistill.losses.mid_level import KDLoss

    loss = KDLoss("logits", "output", "logits", "output", TEMPERATURE, alpha=1 - WEIGHT, beta=WEIGHT)
    return lambda logits, said, labels: loss({"logits": {"output": logits}}, {"logits": {"output": said}}, labels)


def loop(task: Any, turns: Turns, config: dict[str, Any], formula: Formula) -> None:
    """A training loop as one writes it for one experiment."""
    student, teacher, steps = turns.student, task.load_teacher().eval(), config["total"]
    split = task.split("train")
    images, labels = split.x, split.y
    with torch.no_grad():
        table = torch.cat([teacher(part) for part in images.split(256)]) if config["teacher"] == "cached" else None
    batches = orders(len(labels), task.spec.recipe.batch_size, steps, task.stream("data"))
    turns.wait()
    optimizer = torch.optim.SGD(
        student.parameters(), RECIPE["lr"], RECIPE["momentum"], weight_decay=RECIPE["weight_decay"], nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 1)
    student.train()
    curve = Curve(steps)
    for step, rows in enumerate(batches, start=1):
        x, y = images[rows], labels[rows]
        logits = student(x)
        if table is not None:
            said = table[rows]
        else:
            with torch.no_grad():
                said = teacher(x)
        loss = formula(logits, said, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.add(step, loss)
        turns.step()


def fit(task: Any, turns: Turns, config: dict[str, Any]) -> None:
    """``task.fit`` with a loss as methods write it."""
    from kdbench.losses.logits import cross_entropy, kd_kl

    task.teacher()
    if cached := config["teacher"] == "cached":
        task.teacher_logits(task.split("train").batch(torch.arange(2)))  # made once for all jobs, before they start

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        logits = model(batch.x)
        if cached:
            said = task.teacher_logits(batch)
        else:
            with torch.no_grad():
                said = task.teacher()(batch.x)
        return {
            "ce": (1 - WEIGHT) * cross_entropy(logits, batch.y),
            "kd": WEIGHT * kd_kl(logits, said, TEMPERATURE),
        }

    turns.wait()
    task.fit(turns.student, loss, on_step=turns.step)


def train(way: str, task: Any, turns: Turns, config: dict[str, Any]) -> None:
    """One of the ways; the first wait of ``turns`` comes when data and models are ready."""
    if way == "kdbench":
        fit(task, turns, config)
    else:
        loop(task, turns, config, torchdistill() if way == "torchdistill" else by_hand)
