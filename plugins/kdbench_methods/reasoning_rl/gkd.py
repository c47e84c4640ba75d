"""GKD: Generalized Knowledge Distillation, wholly on policy.

Agarwal et al., ICLR 2024. The generalised Jensen-Shannon divergence between teacher and student at every token that
the student has written itself, without a gradient through the sampling. beta = 0 is forward KL, beta = 1 reverse KL.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy
from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits, token_logits

BASELINE = Baseline(
    slug="gkd",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    track="reasoning_rl",
    tasks=["*"],
    requires=["logits"],
    tags=["on-policy", "divergence"],
    reference="Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem; ICLR 2024, arXiv 2306.13649",
)


class GkdParams(Params):
    """The divergence and the sampling."""

    beta: float = Field(0.5, ge=0, le=1, description="of the Jensen-Shannon divergence; 0: forward KL, 1: reverse KL")
    group: int = Field(8, ge=1, le=256, description="responses a prompt")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()

    def loss(model, rollouts):
        told = frozen_logits(task, teacher, rollouts.batch)
        logits = token_logits(model, rollouts.batch)
        return {"kd": tok_mean(per_token("jsd", logits, told, rollouts.targets, beta=params.beta))}

    fit_on_policy(task, student, loss, group=params.group, temperature=params.temperature)
    return student
