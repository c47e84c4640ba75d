"""TTM: Knowledge Distillation Based on Transformed Teacher Matching.

Zheng and Yang, ICLR 2024. Temperature on the teacher's side alone: the power transform of its
distribution is matched by the student's own, which amounts to a Renyi entropy as a regularizer,

    (1 - w) CE(z_s, y) + w KL(softmax(z_t / T) || softmax(z_s)).
"""

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.logits import cross_entropy

from kdbench_matching._logits import centred

PAPER = Paper(
    slug="ttm",
    title="Knowledge Distillation Based on Transformed Teacher Matching",
    year=2024,
    authors=["Kaixiang Zheng", "En-Hui Yang"],
    venue="ICLR",
    arxiv="2402.11148",
    track="vision",
    source="abstract",
    tasks=["classify"],
    requires=["logits"],
    tags=["logits", "temperature"],
    claims=[
        Compare(metric="top1", subject="ttm", reference="kd", tasks=["classify"]),
    ],
    departures=["the weight is shared with the cross-entropy, as in the track's other methods"],
)


class TtmParams(Params):
    """The exponent of the transform is 1 / temperature."""

    temperature: float = Field(4.0, ge=1, le=100, description="of the teacher alone")
    weight: float = Field(0.5, ge=0, le=1, description="of the divergence")


def transformed_matching(student, teacher, temperature):
    """KL of the transformed teacher and the student as it is; (B, C), (B, C) to a scalar."""
    return fkl(student, centred(teacher) / temperature).mean()


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        logits, teacher = model(batch.x), task.teacher_logits(batch)
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "ttm": params.weight * transformed_matching(logits, teacher, params.temperature),
        }

    task.fit(student, loss)
    return student
