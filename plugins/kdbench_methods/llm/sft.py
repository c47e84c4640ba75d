"""Supervised fine-tuning: the student trained on the data alone, without any teacher."""

from kdbench import Baseline, Params, hookimpl
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="sft",
    title="Supervised fine-tuning",
    track="llm",
    tasks=["*"],
    requires=["labels"],
    tags=["no-distillation"],
)


class SftParams(Params):
    """None: the task's recipe is used as it is."""


@hookimpl
def train(task):
    student = task.student()
    task.fit(student, hard_loss(task), loader=task.student_loader())
    return student
