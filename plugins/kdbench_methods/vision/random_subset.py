"""A random part of the training data: what methods that select data are compared with.

The same share of every class is kept, drawn once; the student is distilled on it as by ordinary distillation, with as
many steps as on all data. ``weight = 0`` trains on the labels alone.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training.selection import per_class

BASELINE = Baseline(
    slug="random_subset",
    title="Distillation on a random subset",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly", "prune"],
    requires=["logits"],
    tags=["data-selection"],
)


class RandomSubsetParams(Params):
    """Size of the subset, and the distillation."""

    share: float = Field(0.25, gt=0, le=1, description="of the training images of each class")
    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")


@hookimpl
def train(task, params):
    student = task.student()
    kept = per_class(task.split("train").y.cpu(), params.share, task.generator("subset"))

    def loss(model, batch):
        logits = model(batch.x)
        terms = {"ce": (1 - params.weight) * cross_entropy(logits, batch.y)}
        if params.weight > 0:
            terms["kd"] = params.weight * kd_kl(logits, task.teacher_logits(batch), params.temperature)
        return terms

    task.fit(student, loss, loader=task.train_loader(indices=kept))
    return student
