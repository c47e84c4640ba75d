"""Annealed KD: distillation whose temperature falls from soft to sharp while the student learns.

An example of a whole method in one file. The idea follows Jafari et al., "Annealing Knowledge Distillation",
EACL 2021; the schedule here is the simplest one, a straight line.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training.state import Values

CARD = Baseline(
    slug="annealed_kd",
    title="KD with a falling temperature",
    track="vision",
    tasks=["classify"],
    requires=["logits"],
    tags=["logits", "temperature"],
)


class AnnealedParams(Params):
    """How soft the teacher's outputs are, at first and at last."""

    start: float = Field(8.0, ge=1, le=100, description="Temperature of the first step.")
    end: float = Field(1.0, ge=0.1, le=100, description="Temperature of the last step.")
    weight: float = Field(0.9, ge=0, le=1, description="Share of the distillation loss; the rest is cross-entropy.")


@hookimpl
def train(task, params):
    student, total, progress = task.student(), task.budget.steps(), Values(done=0)

    def loss(model, batch):
        temperature = params.start + (params.end - params.start) * progress.done / total
        logits = model(batch.x)
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "kd": params.weight * kd_kl(logits, task.teacher_logits(batch), temperature),
        }

    def count(step):
        progress.done = step

    task.fit(student, loss, on_step=count, state=[progress])
    return student


@hookimpl
def evaluate(task, model):
    return task.score(model)
