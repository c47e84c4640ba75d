"""Training on what the teacher says instead of the labels."""

from kdbench import Baseline, Field, Params, hookimpl

CARD = Baseline(slug="mimic", title="Imitation of the teacher", track="waves", tasks=["*"], requires=["logits"])


class MimicParams(Params):
    """How much the teacher counts."""

    weight: float = Field(1.0, ge=0, le=1, description="Share of the teacher's answers; the rest are the labels.")


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()

    def loss(model, batch):
        out = model(batch.x)
        return {
            "teacher": params.weight * (out - teacher(batch.x)).square().mean(),
            "labels": (1 - params.weight) * (out - batch.y).square().mean(),
        }

    task.fit(student, loss)
    return student
