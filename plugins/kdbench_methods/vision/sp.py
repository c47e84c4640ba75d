"""Similarity-preserving distillation (Tung and Mori, ICCV 2019).

CE + weight * |G_s - G_t|_F^2 / B^2 with G the row-normalised (B, B) similarities of the samples by the last stage's
features: samples that are alike for the teacher become alike for the student, whatever the two widths.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.features import similarity_preserving
from kdbench.losses.logits import cross_entropy

BASELINE = Baseline(
    slug="sp",
    title="Similarity-Preserving Knowledge Distillation",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    requires=["features"],
    tags=["features", "relations"],
    reference="Tung, Mori; ICCV 2019, arXiv 1907.09682",
)


class SpParams(Params):
    """Weight of the similarity term."""

    weight: float = Field(3000.0, ge=0, description="of the similarity term beside a cross-entropy of weight 1")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        taps, teacher = model.taps(batch.x), task.teacher_taps(batch)
        relation = similarity_preserving(taps.stages[-1], teacher.stages[-1])
        return {"ce": cross_entropy(taps.logits, batch.y), "sp": params.weight * relation}

    task.fit(student, loss)
    return student
