"""Relational knowledge distillation (Park et al., CVPR 2019).

CE + w_d Huber(distances) + w_a Huber(angles) between the samples of a batch, on the penultimate features: distances
are divided by their mean, angles are taken at all triples.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.features import relational_angle, relational_distance
from kdbench.losses.logits import cross_entropy

BASELINE = Baseline(
    slug="rkd",
    title="Relational Knowledge Distillation",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    requires=["features"],
    tags=["features", "relations"],
    reference="Park, Kim, Lu, Cho; CVPR 2019, arXiv 1904.05068",
)


class RkdParams(Params):
    """Weights of the two relations."""

    distance: float = Field(25.0, ge=0, description="weight of the distance term")
    angle: float = Field(50.0, ge=0, description="weight of the angle term")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        taps, teacher = model.taps(batch.x), task.teacher_taps(batch)
        return {
            "ce": cross_entropy(taps.logits, batch.y),
            "distance": params.distance * relational_distance(taps.penult, teacher.penult),
            "angle": params.angle * relational_angle(taps.penult, teacher.penult),
        }

    task.fit(student, loss)
    return student
