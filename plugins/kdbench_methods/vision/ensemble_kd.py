"""Distillation from an ensemble: the target is the mean of several teachers' softened probabilities.

(1 - w) CE + w T^2 KL(mean_m softmax(z_m / T) || softmax(z_s / T)), over all teachers of the task that are trained for
its labels; teachers of other label functions are left out.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.errors import JobError
from kdbench.losses.logits import cross_entropy, kd_kl, mean_probability_logits

BASELINE = Baseline(
    slug="ensemble_kd",
    title="Distillation from an ensemble of teachers",
    track="vision",
    tasks=["ensemble", "shapetex-large-teacher"],
    requires=["logits"],
    tags=["logits", "multi-teacher"],
    reference="Hinton, Vinyals, Dean; NeurIPS workshop 2014, arXiv 1503.02531, section 3",
)


class EnsembleKdParams(Params):
    """As for ordinary distillation."""

    temperature: float = Field(4.0, gt=0, le=100, description="softens all networks' distributions")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")


@hookimpl
def train(task, params):
    members = [name for name, teacher in task.spec.all_teachers().items() if teacher.target == "label"]
    if len(members) < 2:
        raise JobError(f"{task.spec.name} has {len(members)} teacher(s) of its labels; an ensemble needs two or more")
    student, t = task.student(), params.temperature

    def loss(model, batch):
        logits = model(batch.x)
        target = t * mean_probability_logits([task.teacher_logits(batch, which) / t for which in members])
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "kd": params.weight * kd_kl(logits, target, t),
        }

    task.fit(student, loss)
    return student
