"""DIST: Knowledge Distillation from a Stronger Teacher (Huang et al., NeurIPS 2022).

CE + T^2 (beta (1 - corr over classes) + gamma (1 - corr over samples)), Pearson correlations of the probabilities:
the student matches the teacher's relations up to scale and shift, not its values.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, dist

BASELINE = Baseline(
    slug="dist",
    title="Knowledge Distillation from A Stronger Teacher",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "correlation"],
    reference="Huang, You, Wang, Qian, Xu; NeurIPS 2022, arXiv 2205.10536",
)


class DistParams(Params):
    """Weights of the two correlations and temperature."""

    beta: float = Field(2.0, ge=0, description="weight of the correlation over the classes of a sample")
    gamma: float = Field(2.0, ge=0, description="weight of the correlation over the samples of a class")
    temperature: float = Field(1.0, gt=0, le=100, description="softens both networks' distributions")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        logits, teacher = model(batch.x), task.teacher_logits(batch)
        relation = dist(logits, teacher, beta=params.beta, gamma=params.gamma, temperature=params.temperature)
        return {"ce": cross_entropy(logits, batch.y), "dist": relation}

    task.fit(student, loss)
    return student
