"""OPD: on-policy distillation, the teacher's reverse KL at every token that the student has written itself.

For responses y sampled from the student q with the teacher p,

    L = mean_t KL(q(. | x, y_<t) || p(. | x, y_<t)),

without a gradient through the sampling. ``form`` chooses other losses with the same rollouts: the sampled policy
gradient ``-(log p(y_t) - log q(y_t)) log q(y_t)``, the forward direction, or sums over the k most probable tokens.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy
from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits, token_logits

BASELINE = Baseline(
    slug="opd",
    title="On-Policy Distillation (reverse KL on the student's own responses)",
    track="reasoning_rl",
    tasks=["*"],
    requires=["logits"],
    tags=["on-policy", "divergence"],
    reference="Lu, Thinking Machines Lab; 2025",
)


class OpdParams(Params):
    """The loss and the sampling."""

    form: Literal["reverse", "forward", "sampled", "trunc", "trunc_sg", "renorm", "tail", "inter_sg"] = Field(
        "reverse", description="divergence over the vocabulary, on sampled tokens, or on the k most probable ones"
    )
    k: int = Field(8, ge=1, le=4096, description="tokens of a support, for the last five forms")
    group: int = Field(8, ge=1, le=256, description="responses a prompt")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()

    def loss(model, rollouts):
        told = frozen_logits(task, teacher, rollouts.batch)
        logits = token_logits(model, rollouts.batch)
        return {"kd": tok_mean(per_token(params.form, logits, told, rollouts.targets, k=params.k))}

    fit_on_policy(task, student, loss, group=params.group, temperature=params.temperature)
    return student
