"""Temperature scaling after distillation (Guo et al., ICML 2017, on top of Hinton, Vinyals and Dean, 2015).

A student of ordinary distillation whose last layer is divided by the one number that gives the least cross-entropy on
the validation data. Predictions stay as they are, probabilities become calibrated: what methods that claim calibration
without such a step are compared with.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.metrics import optimal_temperature

BASELINE = Baseline(
    slug="kd_recalibrated",
    title="Distillation followed by temperature scaling",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "multidomain"],
    requires=["logits"],
    tags=["logits", "divergence", "calibration"],
    reference="Guo, Pleiss, Sun, Weinberger; ICML 2017, arXiv 1706.04599, section 4.2",
)


class KdRecalibratedParams(Params):
    """As for ordinary distillation."""

    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions in training")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")


@torch.no_grad()
def rescale(head, temperature):
    """Divide the logits of a linear layer by a number, in place."""
    head.weight /= temperature
    if head.bias is not None:
        head.bias /= temperature


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        logits = model(batch.x)
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "kd": params.weight * kd_kl(logits, task.teacher_logits(batch), params.temperature),
        }

    task.fit(student, loss)
    val = task.split("val")
    temperature = optimal_temperature(task.predict(student, val.x), val.y)
    rescale(student.head(), temperature)
    task.log(int(task.budget.spent["steps"]), recalibration_temperature=temperature)
    return student
