"""Knowledge distillation (Hinton, Vinyals and Dean, 2015).

(1 - w) CE(z_s, y) + w T^2 KL(softmax(z_t / T) || softmax(z_s / T)), on the batch that both networks see.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl

BASELINE = Baseline(
    slug="kd",
    title="Distilling the Knowledge in a Neural Network",
    track="vision",
    tasks=[
        "classify",
        "ensemble",
        "hetero",
        "conditional",
        "longtail",
        "noisy",
        "mismatch",
        "multidomain",
        "webly",
        "active",
        "search",
        "shifted",
        "prune",
    ],
    requires=["logits"],
    tags=["logits", "divergence"],
    reference="Hinton, Vinyals, Dean; NeurIPS workshop 2014, arXiv 1503.02531",
)


class KdParams(Params):
    """Temperature and mixing weight."""

    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")


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
    return student
