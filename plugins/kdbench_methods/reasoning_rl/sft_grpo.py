"""Fine-tuning first, reinforcement learning after: the usual way to have both a teacher and a verifier.

Part of the steps go to cross-entropy on solutions (worked ones, or verified responses of the teacher or of the four
peers), the rest to GRPO from there (Shao et al., 2024).
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy, grpo_terms, policy_logp
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of, traces
from kdbench.training.distill import hard_loss

BASELINE = Baseline(
    slug="sft_grpo",
    title="Supervised fine-tuning, then GRPO",
    track="reasoning_rl",
    tasks=["*"],
    requires=["samples"],
    tags=["off-policy", "on-policy", "policy-gradient", "teacher-samples"],
    reference="Shao, Wang, Zhu, Xu, Song, et al.; 2024, arXiv 2402.03300",
)


class SftGrpoParams(Params):
    """Whose solutions, and how the steps are divided."""

    source: Literal["gold", "teacher", "peers"] = Field("teacher", description="whose solutions are learned first")
    fraction: float = Field(0.5, gt=0, lt=1, description="share of the steps that goes to them")
    problems: int = Field(1024, ge=1, le=1000000, description="problems that the teacher answers; peers share them")
    sampling_temperature: float = Field(0.6, gt=0, le=10, description="at which teachers are sampled")
    rows: int = Field(8, ge=1, le=256, description="solutions a step, as a multiple of the recipe's batch size")
    group: int = Field(8, ge=2, le=256, description="responses a problem in the second part")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")


def solutions(task, params):
    """Batches of the first part."""
    size = params.rows * task.spec.recipe.batch_size
    if params.source == "gold":
        return task.train_loader(size)
    names = ["teacher_rl"] if params.source == "teacher" else [f"peer_{i}" for i in range(1, 5)]
    each = max(1, params.problems // len(names))
    how = {"temperature": params.sampling_temperature, "verified": False}
    parts = [traces(task, task.checkpoint(name), each, purpose=f"traces/{name}", **how) for name in names]
    written = task.judged(
        [problem for part in parts for problem in part.problems],
        [row for part in parts for row in part.prompts],
        [row for part in parts for row in part.responses],
        metered=False,
    )
    kept = written.correct.nonzero()[:, 0]
    task.log(0, verified=len(kept) / len(written))
    return loader_of(task, written.rows(kept) if len(kept) else written, size)


@hookimpl
def train(task, params):
    student = task.student()
    first = min(task.budget.steps(params.fraction), int(task.budget.remaining()) - 1)
    task.fit(student, hard_loss(task), loader=solutions(task, params), steps=first, tag="sft")

    def loss(model, rollouts):
        return grpo_terms(rollouts, policy_logp(model, rollouts))

    fit_on_policy(task, student, loss, group=params.group, temperature=params.temperature)
    return student
