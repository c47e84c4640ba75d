"""GRPO: group-relative policy optimisation on the verifier's reward, without any teacher.

For each prompt G responses are sampled; with rewards r_i their advantages are

    A_i = (r_i - mean_j r_j) / (std_j r_j + 1e-4)

and every token of response i has the loss ``-min(rho_t A_i, clip(rho_t, 1 - low, 1 + high) A_i)`` with
``rho_t = pi(y_t) / pi_old(y_t)``. With one update a batch (the default) rho is 1 and the loss is the plain policy
gradient. There is no reference policy and no entropy bonus.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.policy_gradient import clip_fraction
from kdbench.tracks.reasoning_rl.blocks.recipes import advantages, fit_on_policy, grpo_terms, policy_logp

BASELINE = Baseline(
    slug="grpo",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (GRPO)",
    track="reasoning_rl",
    tasks=["*"],
    tags=["on-policy", "policy-gradient", "no-distillation"],
    reference="Shao, Wang, Zhu, Xu, Song, et al.; 2024, arXiv 2402.03300",
)


class GrpoParams(Params):
    """The groups, the clipping, and how tokens are averaged."""

    group: int = Field(8, ge=2, le=256, description="responses a prompt")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")
    scale: Literal["group", "none"] = Field(
        "group", description="advantages are divided by the group's deviation or not"
    )
    aggregation: Literal["token_mean", "seq_mean", "const"] = Field(
        "token_mean", description="mean over tokens (DAPO), over responses, or a sum over a constant (Dr. GRPO)"
    )
    minibatches: int = Field(1, ge=1, le=64, description="updates that one batch of responses is used for")
    low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped at 1 - low")
    high: float = Field(0.2, gt=0, le=10, description="and at 1 + high")


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, rollouts):
        logp = policy_logp(model, rollouts)
        clip = {"low": params.low, "high": params.high}
        if params.minibatches > 1:
            task.note(clipped=clip_fraction(logp, rollouts.old_logp, advantages(rollouts, params.scale), **clip))
        return grpo_terms(rollouts, logp, scale=params.scale, how=params.aggregation, length=task.max_new, **clip)

    fit_on_policy(
        task, student, loss, group=params.group, temperature=params.temperature, minibatches=params.minibatches
    )
    return student
