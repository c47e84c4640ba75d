"""RFT: rejection-sampling fine-tuning on the student's own responses that the verifier accepts.

Yuan et al., 2023. The student answers training problems several times before training starts; every right response
becomes a row of plain fine-tuning. No teacher.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of, traces
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="rft",
    title="Scaling Relationship on Learning Mathematical Reasoning with Large Language Models (rejection sampling)",
    track="reasoning_rl",
    tasks=["*"],
    tags=["self-training", "no-distillation"],
    reference="Yuan, Yuan, Li, Dong, Lu, Tan, Zhou, Zhou; 2023, arXiv 2308.01825",
)


class RftParams(Params):
    """What the student writes, and the size of a step."""

    problems: int = Field(512, ge=1, le=1000000, description="training problems that the student answers")
    samples: int = Field(8, ge=1, le=256, description="responses to each")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")
    rows: int = Field(8, ge=1, le=256, description="responses a step, as a multiple of the recipe's batch size")


@hookimpl
def train(task, params):
    student = task.student()
    written = traces(task, student, params.problems, samples=params.samples, temperature=params.temperature)
    task.log(0, rows=len(written))
    task.fit(student, hard_loss(task), loader=loader_of(task, written, params.rows * task.spec.recipe.batch_size))
    return student
