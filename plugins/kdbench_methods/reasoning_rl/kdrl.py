"""KDRL: post-training by knowledge distillation and reinforcement learning in one objective, on the same rollouts.

Xu et al., 2025. With the group-relative objective J_GRPO (binary reward, mean over tokens, no reference policy)
and a teacher p,

    maximise  J_GRPO - b KL_hat(q || p).

``estimator`` says how the divergence is estimated on the sampled tokens, with d_t = log q(y_t) - log p(y_t): ``k2``
(d^2 / 2, whose gradient is that of the reverse KL; the paper's choice), ``k3`` (whose gradient as a loss is that of the
*forward* KL), ``k1`` as a reward (the advantage -d), ``exact`` over the vocabulary, or ``topk``. ``unify`` says how
the two are joined: ``joint_loss``, or ``reward_shaping``, r - b sum_t d_t before the normalisation within groups, which
mixes two scales. ``mask`` leaves distillation out where the response is right, or where the group has a right one.

The coefficient falls linearly, ``b_t = max(b_0 - delta t, b_min)``, once an optimizer step. ``calibrated`` measures at
the first batch with a reinforcement signal the ratio u of the norms of the two gradients and uses b_0 = ``start`` u and
b_min = ``least`` u; ``given`` takes the paper's numbers as they are.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.kl_estimates import as_reward, estimate
from kdbench.losses.policy_gradient import aggregate, clipped, group_advantage
from kdbench.tracks.reasoning_rl.blocks.edits import members
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy, grpo_terms
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits, token_logits
from kdbench.training.state import Values

PAPER = Paper(
    slug="kdrl",
    title="KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement Learning",
    year=2025,
    authors=[
        "Hongling Xu",
        "Qi Zhu",
        "Heyuan Deng",
        "Jinpeng Li",
        "Lu Hou",
        "Yasheng Wang",
        "Lifeng Shang",
        "Ruifeng Xu",
        "Fei Mi",
    ],
    arxiv="2506.02208",
    track="reasoning_rl",
    source="paper",
    tasks=["*"],
    requires=["logits"],
    tags=["on-policy", "policy-gradient", "divergence"],
    claims=[
        Compare(
            metric="acc",
            subject="kdrl",
            reference="grpo",
            tasks=["mixed"],
            note="Both signals are better than reinforcement learning alone ...",
        ),
        Compare(
            metric="acc",
            subject="kdrl",
            reference="opd",
            tasks=["mixed"],
            note="... and than on-policy distillation alone, at as many generated tokens.",
        ),
        Compare(
            metric="tokens",
            subject="kdrl",
            reference="grpo",
            tasks=["mixed"],
            note="Its responses are shorter than those of reinforcement learning.",
        ),
    ],
    departures=[
        "b is scaled by the norms of the two gradients (calibrated); coefficient given takes the paper's numbers",
        "until a batch has a reinforcement signal, so that norms can be compared, distillation has the weight 1",
    ],
)


class KdrlParams(Params):
    """The estimator of the divergence, how it is joined with the reward, and its coefficient."""

    estimator: Literal["k2", "k3", "k1", "exact", "topk"] = Field(
        "k2", description="of the divergence: on sampled tokens (k1 as a reward), over the vocabulary, or its top k"
    )
    k: int = Field(8, ge=1, le=4096, description="tokens of topk, the student's most probable ones")
    unify: Literal["joint_loss", "reward_shaping"] = Field(
        "joint_loss", description="a second term of the loss, or a part of the reward"
    )
    mask: Literal["none", "response", "group"] = Field(
        "none", description="no distillation where the response is right, or where one of its group is"
    )
    coefficient: Literal["calibrated", "given"] = Field(
        "calibrated", description="start and least are multiples of the ratio of the gradients' norms, or b itself"
    )
    start: float = Field(0.5, ge=0, le=1000, description="b at the first step")
    least: float = Field(0.1, ge=0, le=1000, description="b at the end of its fall, which start bounds")
    fall: float = Field(0.75, gt=0, le=1, description="share of the steps after which b is at its least")
    group: int = Field(8, ge=2, le=256, description="responses a prompt")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")


def kept(rollouts, mask):
    """(R,) 1 where a response is distilled on, else 0."""
    weights = torch.ones(len(rollouts))
    if mask == "response":
        weights[rollouts.correct] = 0.0
    elif mask == "group":
        for rows in members(rollouts):
            if bool(rollouts.correct[rows].any()):
                weights[rows] = 0.0
    return weights


def divergence(kind, logits, told, rollouts, k):
    """Losses (N,) of logits (N, V) of student and teacher on the response tokens."""
    if kind in ("exact", "topk"):
        return per_token("reverse" if kind == "exact" else "trunc", logits, told, rollouts.targets, k=k)
    logp, other = chosen(logits, rollouts.targets), chosen(told, rollouts.targets)
    return as_reward(logp, other) if kind == "k1" else estimate(kind, logp, other)


def shaped(rollouts, logp, other, b, weights):
    """(R,) advantages of ``r - b sum_t d_t``, normalised within groups; ``weights`` (R,) say where d counts."""
    gap = torch.zeros(len(rollouts), device=logp.device).index_add(0, rollouts.sequence, (logp - other).detach())
    return group_advantage(rollouts.reward - b * gap * weights.to(gap.device), rollouts.group)


def gradient_norm(value, model):
    """Norm of the gradient of a scalar in the parameters of a model, a number."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return float(torch.stack([g.float().norm() for g in found if g is not None]).norm())


class Coefficient(Values):
    """b_t: its unit (0 until it is known) and the optimizer steps so far."""

    kept = ("unit", "step")

    def __init__(self, params, steps):
        self.params, self.steps = params, max(1, round(params.fall * steps))
        self.unit, self.step = float(params.coefficient == "given"), 0

    def measure(self, policy, kd, model):
        """Set the unit from the norms of the two gradients, where both have one; says whether it did."""
        if self.unit == 0.0:
            first, second = gradient_norm(policy, model), gradient_norm(kd, model)
            if first > 0 and second > 0:
                self.unit = first / second

    @property
    def value(self):
        """b at this step; 1 while the unit is not known."""
        if self.unit == 0.0:
            return 1.0
        start, least = self.params.start, min(self.params.start, self.params.least)
        return self.unit * max(start - (start - least) * self.step / self.steps, least)

    def count(self, step):
        """After optimizer step ``step``."""
        self.step = step


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()
    weight = Coefficient(params, task.budget.remaining("steps"))

    def loss(model, rollouts):
        logits = token_logits(model, rollouts.batch)
        logp = chosen(logits, rollouts.targets, rollouts.temperature)
        policy = grpo_terms(rollouts, logp)
        if weight.unit > 0 and weight.value == 0:
            return policy
        told, weights = frozen_logits(task, teacher, rollouts.batch), kept(rollouts, params.mask)
        values = divergence(params.estimator, logits, told, rollouts, params.k)
        kd = aggregate(values * rollouts.per_token(weights), rollouts.sequence)
        weight.measure(policy, kd, model)
        task.note(kd=kd.detach(), coefficient=weight.value, masked=1 - weights.mean())
        if params.unify == "joint_loss":
            return {"policy": policy, "kd": weight.value * kd}
        advantage = shaped(rollouts, logp, chosen(told, rollouts.targets), weight.value, weights)
        return aggregate(clipped(logp, rollouts.old_logp, rollouts.per_token(advantage)), rollouts.sequence)

    fit_on_policy(
        task,
        student,
        loss,
        group=params.group,
        temperature=params.temperature,
        state=[weight],
        on_step=weight.count,
    )
    return student
