"""Supervised fine-tuning on the worked solutions of the training problems: no teacher, no reward."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="sft_gold",
    title="Supervised fine-tuning on worked solutions",
    track="reasoning_rl",
    tasks=["*"],
    requires=["labels"],
    tags=["off-policy", "no-distillation"],
)


class SftGoldParams(Params):
    """The size of a step."""

    rows: int = Field(8, ge=1, le=256, description="solutions a step, as a multiple of the recipe's batch size")


@hookimpl
def train(task, params):
    student = task.student()
    task.fit(student, hard_loss(task), loader=task.train_loader(params.rows * task.spec.recipe.batch_size))
    return student
