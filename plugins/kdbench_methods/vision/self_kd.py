"""Self-distillation: a first network of the student's own architecture teaches a second one.

Born-again networks with one generation (Furlanello et al., ICML 2018): the teacher differs from the student by its
initialisation alone and is trained on the labels with the same number of steps, which are metered as ``aux_steps``.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl

BASELINE = Baseline(
    slug="self_kd",
    title="Self-distillation: a teacher of the student's architecture",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "selfdistill", "longtail", "noisy", "mismatch", "multidomain", "related"],
    tags=["logits", "self-distillation"],
    reference="Furlanello, Lipton, Tschannen, Itti, Anandkumar; ICML 2018, arXiv 1805.04770",
)


class SelfKdParams(Params):
    """As for ordinary distillation."""

    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")


@hookimpl
def train(task, params):
    with task.seeded("first"):
        first = task.build_student().to(task.device)
    steps = task.budget.steps()
    task.fit(
        first,
        lambda model, batch: cross_entropy(model(batch.x), batch.y),
        loader=task.train_loader("labeled"),
        steps=steps,
        spend="aux_steps",
        tag="first",
    )
    first.requires_grad_(False).eval()
    student = task.student()

    def loss(model, batch):
        logits = model(batch.x)
        with torch.no_grad():
            target = first(batch.x)
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "kd": params.weight * kd_kl(logits, target, params.temperature),
        }

    task.fit(student, loss)
    return student
