"""A policy gradient that is plain: a response is worth its reward less the mean of its group, whatever its spread."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy, grpo_terms, policy_logp

BASELINE = Baseline(
    slug="own_reinforcement",
    title="Policy gradient with the mean of the group as baseline",
    track="reasoning_rl",
    tasks=["*"],
    tags=["on-policy", "policy-gradient"],
)


class OwnPolicyParams(Params):
    """The size of a group."""

    group: int = Field(8, ge=2, le=256, description="responses a prompt")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, rollouts):
        return grpo_terms(rollouts, policy_logp(model, rollouts), scale="none", how="const", length=task.max_new)

    fit_on_policy(task, student, loss, group=params.group)
    return student
