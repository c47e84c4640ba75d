"""Official metrics: accuracy and pass@k of sampled responses, generalisation, lengths, and distance to the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.divergences import entropy, kl, log_softmax
from kdbench.task import Scores
from kdbench.tracks.reasoning_rl.data.problems import Problem

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask

REPEATED = 0.5
"""Share of repeated 4-grams beyond which a response counts as a repetition."""


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """(P,) unbiased estimates of the probability that one of k samples is right (Chen et al. 2021), of (P, n >= k).

    >>> pass_at_k(np.array([[1, 0, 0, 0]]), 2)
    array([0.5])
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return np.array([1.0 - comb(n - int(c), k) / comb(n, k) for c in correct.sum(axis=1)])


def repeats(tokens: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of a response that occurred in it before, in [0, 1]; 0 for short ones."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


@torch.no_grad()
def beside_teacher(task: Any, model: nn.Module, rollouts: Any) -> dict[str, float]:
    """Entropy of the model, KL(model || teacher) and agreement of their best tokens, means over the response tokens."""
    from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits, token_logits

    logits = token_logits(model, rollouts.batch)
    log_q, other = log_softmax(logits), frozen_logits(task, task.teacher(), rollouts.batch)
    width = min(other.shape[-1], logits.shape[-1])
    log_p = log_softmax(other[:, :width])
    same: Tensor = log_q.argmax(-1) == log_p.argmax(-1)
    return {
        "entropy": float(entropy(log_q).mean()),
        "kl_teacher": float(kl(log_q[:, :width], log_p).mean()),
        "agreement": float(same.float().mean()),
    }


def measure(task: ReasoningTask, model: nn.Module) -> Scores:
    """All metrics on the test data; ``acc`` also per problem.

    ``acc`` is the mean over the first ``acc_samples`` of ``samples`` responses a problem, which pass@k is estimated
    from; the other splits take ``acc_samples``. Random numbers come from the stream ``eval``.
    """
    wanted, generator = task.spec.evaluation, task.generator("eval")
    problems = task.problems("test")
    rollouts = task.rollouts(
        model, problems, group=wanted.samples, temperature=wanted.temperature, generator=generator, metered=False
    )
    correct = rollouts.correct.view(len(problems), wanted.samples).numpy().astype(float)
    per_problem = correct[:, : wanted.acc_samples].mean(axis=1)
    lengths = rollouts.lengths.double().numpy()
    metrics = {
        "acc": float(per_problem.mean()),
        "tokens": float(lengths.mean()),
        "tokens_p95": float(np.quantile(lengths, 0.95)),
        "truncated": float(rollouts.truncated.double().mean()),
        "repetition": float(np.mean([repeats(row) > REPEATED for row in rollouts.responses])),
    }
    for k in (1, 4, 8):
        if k <= wanted.samples:
            metrics[f"pass_{k}"] = float(pass_at_k(correct, k).mean())
    greedy = task.rollouts(model, problems, temperature=0.0, metered=False)
    metrics["greedy"] = float(greedy.correct.double().mean())
    for name in ("ood_len", "ood_family", "retain"):
        if name in task.kind.names:
            limit = wanted.ood_max_new if name == "ood_len" else wanted.max_new
            metrics[name] = float(_accuracy(task, model, task.problems(name), limit, generator).mean())
    few = rollouts.rows(torch.arange(0, len(rollouts), wanted.samples))
    metrics |= beside_teacher(task, model, few)
    return Scores(metrics, {"acc": per_problem, "greedy": greedy.correct.double().numpy()})


def _accuracy(
    task: ReasoningTask, model: nn.Module, problems: list[Problem], max_new: int, generator: torch.Generator
) -> np.ndarray:
    wanted = task.spec.evaluation
    return task.accuracy(
        model,
        problems,
        samples=wanted.acc_samples,
        temperature=wanted.temperature,
        max_new=max_new,
        generator=generator,
        metered=False,
    )
