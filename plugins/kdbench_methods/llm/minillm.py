"""Policy-gradient reverse KL, in the style of MiniLLM (Gu et al., 2024).

Minimises KL(q || p) over whole responses that the student samples. With the reward r_t = log p(y_t) - log q(y_t) and
R_t its sum from t on, the gradient of the sequence-level divergence splits into what a token does to its own
distribution, computed exactly, and what it leads to, by the policy gradient:

    L = mean_t [ KL(q_t || p_t) - R_{t+1} / (T - t) * log q(y_t) ],

where the future reward is averaged over the tokens it comes from, so that long responses are not favoured.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import log_softmax, rkl
from kdbench.losses.tokens import tok_mean
from kdbench.training.loaders import cycle
from kdbench.training.rollouts import MixedBatches, sampler

BASELINE = Baseline(
    slug="minillm",
    title="MiniLLM: Knowledge Distillation of Large Language Models (policy-gradient reverse KL)",
    track="llm",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["on-policy", "policy-gradient"],
    reference="Gu, Dong, Wei, Huang; ICLR 2024, arXiv 2306.08543",
)


class MiniLlmParams(Params):
    """The terms of the policy gradient and the sampling."""

    long_term: float = Field(
        1.0, ge=0, le=10, description="weight of the policy gradient; 0: reverse KL of tokens alone"
    )
    length_normalised: bool = Field(True, description="the future reward is a mean over the tokens ahead, not a sum")
    baseline: bool = Field(True, description="the mean future reward of the batch is subtracted (less variance)")
    lm_ratio: float = Field(0.0, ge=0, le=10, description="weight of a cross-entropy on the data beside it")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which responses are sampled")
    max_new: int = Field(24, ge=1, le=4096, description="longest sampled response in tokens")
    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps: sampling makes them dearer")


def future_rewards(rewards, sequence, length_normalised=True):
    """What follows each token: sum (or mean) of the rewards of the later tokens of its sequence, 0 at its last.

    ``rewards`` (N,) and ``sequence`` (N,) ascending, as in ``losses.tokens.Positions``.
    """
    counts = torch.unique_consecutive(sequence, return_counts=True)[1]
    result = []
    for part in rewards.split(counts.tolist()):
        later = part.flip(0).cumsum(0).flip(0) - part
        if length_normalised:
            ahead = torch.arange(len(part) - 1, -1, -1, device=part.device)
            later = later / ahead.clamp_min(1)
        result.append(later)
    return torch.cat(result) if result else rewards


def policy_gradient_loss(student, teacher, targets, sequence, *, long_term=1.0, length_normalised=True, baseline=True):
    """Per-token surrogate (N,), whose mean has the gradient of the sequence-level reverse KL on sampled ``targets``.

    ``student`` and ``teacher`` (N, V) logits, ``targets`` (N,) the sampled tokens.
    """
    value = rkl(student, teacher)
    if long_term > 0:
        log_q = log_softmax(student).gather(-1, targets[:, None])[:, 0]
        log_p = log_softmax(teacher.detach()).gather(-1, targets[:, None])[:, 0]
        future = future_rewards((log_p - log_q).detach(), sequence, length_normalised)
        if baseline:
            future = future - future.mean()
        value = value - long_term * future * log_q
    return value


@hookimpl
def train(task, params):
    student = task.student()
    sample = sampler(task, student, max_new=params.max_new, temperature=params.sampling_temperature)
    data = cycle(task.train_loader())

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        surrogate = policy_gradient_loss(
            tokens.student,
            tokens.teacher,
            tokens.targets,
            tokens.sequence,
            long_term=params.long_term,
            length_normalised=params.length_normalised,
            baseline=params.baseline,
        )
        parts = {"policy": tok_mean(surrogate)}
        if params.lm_ratio > 0:
            parts["lm"] = params.lm_ratio * tok_mean(task.nll(model, next(data)))
        return parts

    rollouts = MixedBatches(task.train_loader(), sample, lambda step: 1.0, task.rng("mix"))
    task.fit(student, loss, loader=rollouts, steps=task.budget.steps(params.steps_fraction), state=[data])
    return student
