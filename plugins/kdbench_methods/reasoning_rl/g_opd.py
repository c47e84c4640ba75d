"""G-OPD: generalised on-policy distillation, with reward extrapolation (ExOPD).

Yang, Liu, Xie, Yang, Yang and Lin, 2026. On-policy distillation is reinforcement learning with a dense reward, the
log-ratio of the teacher q and a base b, and a KL penalty to that base, both of weight 1. G-OPD weighs the reward:

    max  E_pi[lam log(q / b)] - KL(pi || b)

Every token that the student has sampled gets, without gradient, the advantage

    A_t = -[(log pi_old(y_t) - log b(y_t)) - lam (log q(y_t) - log b(y_t))]

and the clipped loss of PPO. No group normalisation, no verifier. lam = 1 is plain on-policy distillation for any base;
lam > 1 extrapolates beyond the teacher: the optimum is ``b^(1 - lam) q^lam``, normalised.

* ``base``: the student before training, a frozen network of its own; or, to correct the reward when a large teacher
  teaches a small student, the teacher before its reinforcement learning.
* ``teachers = experts``: each problem is scored by the expert of its domain (:mod:`.blocks.experts`), within one mixed
  batch; one student takes in all of them.
* The policy is the student at temperature 1. Where tokens are sampled at another temperature, weights
  ``min(pi_old / sampler, 5)`` correct for it, token by token.

``evaluate`` adds accuracy and gain over the teacher in each domain, KL to the base, and how far the best policy that
is found numerically for real contexts is from the closed form.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError
from kdbench.losses.divergences import kl, log_softmax, same_vocabulary
from kdbench.losses.policy_gradient import aggregate, clipped
from kdbench.tracks.reasoning_rl.blocks.experts import domains, everywhere, experts_of, routed_logp
from kdbench.tracks.reasoning_rl.blocks.extrapolation import advantage, optimum_error, truncated_weights
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits, token_logits

PAPER = Paper(
    slug="g_opd",
    title="Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
    year=2026,
    authors=["Wenkai Yang", "Weijie Liu", "Ruobing Xie", "Kai Yang", "Saiyong Yang", "Yankai Lin"],
    track="reasoning_rl",
    arxiv="2602.12125",
    source="code",
    tasks=["*"],
    requires=["logits"],
    tags=["on-policy", "policy-gradient", "divergence", "multi-teacher"],
    claims=[
        Compare(
            metric="acc",
            subject={"method": "g_opd", "params": {"teachers": "experts"}},
            reference={"method": "g_opd", "params": {"teachers": "experts", "lam": 1.0}},
            tasks=["mixed"],
            note="With experts of the student's size a reward weight of 1.25 beats plain on-policy distillation.",
        ),
        Compare(
            metric="optimum_error",
            subject="g_opd",
            reference=0.0,
            tasks=["mixed"],
            kind="noninferior",
            margin=1e-8,
            direction="min",
            note="At a fixed context the best policy is proportional to base^(1 - lam) teacher^lam.",
        ),
    ],
    departures=[
        "truncated weights correct for the sampling temperature, not for a second inference engine, and are 1 at 1",
        "the size of a step is that of the track's other on-policy methods, each problem with one response",
    ],
)


class GOpdParams(Params):
    """The reward, the teachers and the sampling."""

    lam: float = Field(1.25, ge=0, le=4, description="weight of the reward; 1: on-policy distillation")
    teachers: Literal["teacher", "experts"] = Field(
        "teacher", description="the task's teacher, or for each problem the expert of its domain"
    )
    base: Literal["student", "teacher_sft"] = Field(
        "student", description="what the reward is relative to: the student at the start, or the teacher before its RL"
    )
    rows: int = Field(8, ge=1, le=256, description="responses a step, as a multiple of the recipe's batch size")
    group: int = Field(1, ge=1, le=256, description="responses a problem")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")
    truncation: float = Field(5.0, ge=1, le=100, description="largest importance weight of a token")
    minibatches: int = Field(1, ge=1, le=64, description="updates that one batch of responses is used for")
    low: float = Field(0.2, gt=0, lt=1, description="the ratio of the policy is clipped at 1 - low")
    high: float = Field(0.2, gt=0, le=10, description="and at 1 + high")


def teachers_of(task, params):
    return everywhere(task, task.teacher()) if params.teachers == "teacher" else experts_of(task)


def base_of(task, params):
    return task.checkpoint("student_sft" if params.base == "student" else "teacher_sft")


@hookimpl
def train(task, params):
    if params.minibatches > 1 and params.temperature != 1:
        raise JobError("several updates a batch need samples of the policy itself: set minibatches or temperature to 1")
    student, experts, base = task.student(), teachers_of(task, params), base_of(task, params)
    prompts = max(1, params.rows * task.spec.recipe.batch_size // params.group)

    def loss(model, rollouts):
        logp = chosen(token_logits(model, rollouts.batch), rollouts.targets)
        old = rollouts.old_logp if params.temperature == 1 else logp.detach()
        taught = routed_logp(task, experts, rollouts)
        before = chosen(frozen_logits(task, base, rollouts.batch), rollouts.targets)
        gain = advantage(old, taught, before, params.lam)
        weights = truncated_weights(old, rollouts.old_logp, params.truncation)
        task.note(advantage=gain.mean(), teacher_gap=(old - taught).mean(), base_gap=(old - before).mean())
        return aggregate(weights * clipped(logp, old, gain, low=params.low, high=params.high), rollouts.sequence)

    fit_on_policy(
        task,
        student,
        loss,
        prompts=prompts,
        group=params.group,
        temperature=params.temperature,
        minibatches=params.minibatches,
    )
    return student


@hookimpl
def evaluate(task, model, params):
    scores, problems = task.scores(model), task.problems("test")
    found, experts, base = dict(scores.metrics), teachers_of(task, params), base_of(task, params)
    for name, places in domains(problems).items():
        asked = [problems[i] for i in places]
        found[f"acc/{name}"] = float(scores.examples["acc"][places].mean())
        if name in experts:  # there may be test problems of a domain that nothing was trained on
            theirs = task.accuracy(experts[name], asked, samples=task.spec.evaluation.acc_samples)
            found[f"gain/{name}"] = found[f"acc/{name}"] - float(theirs.mean())
    few = task.rollouts(model, problems[:16], generator=task.generator("eval"))
    told, own = frozen_logits(task, base, few.batch), frozen_logits(task, model, few.batch)
    small, other = same_vocabulary(own, told)
    found["kl_base"] = float(kl(log_softmax(small), log_softmax(other)).mean())
    teacher, contexts = next(iter(experts.values())), few.rows(torch.arange(1))
    pair = same_vocabulary(frozen_logits(task, base, contexts.batch), frozen_logits(task, teacher, contexts.batch))
    found["optimum_error"] = optimum_error(*pair, params.lam)
    return found
