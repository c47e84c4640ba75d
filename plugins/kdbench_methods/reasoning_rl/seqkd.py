"""SeqKD: the student is fine-tuned on the teacher's own sampled responses, those that the verifier accepts.

Kim and Rush, 2016. The teacher's distribution over whole responses, in place of that over each token; its logits are
never needed.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of, traces
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="seqkd",
    title="Sequence-Level Knowledge Distillation",
    track="reasoning_rl",
    tasks=["*"],
    requires=["samples"],
    tags=["off-policy", "teacher-samples"],
    reference="Kim, Rush; EMNLP 2016, arXiv 1606.07947",
)


class SeqKdParams(Params):
    """What the teacher writes, and the size of a step."""

    problems: int = Field(1024, ge=1, le=1000000, description="training problems that the teacher answers")
    samples: int = Field(1, ge=1, le=64, description="responses to each")
    temperature: float = Field(0.6, gt=0, le=10, description="at which they are sampled")
    rows: int = Field(8, ge=1, le=256, description="responses a step, as a multiple of the recipe's batch size")


@hookimpl
def train(task, params):
    student = task.student()
    try_all = {"samples": params.samples, "temperature": params.temperature}
    written = traces(task, task.teacher(), params.problems, verified=False, **try_all)
    kept = written.correct.nonzero()[:, 0]
    task.log(0, verified=len(kept) / len(written))
    chosen = written.rows(kept) if len(kept) else written  # a teacher that solves nothing still has a style
    task.fit(student, hard_loss(task), loader=loader_of(task, chosen, params.rows * task.spec.recipe.batch_size))
    return student
