"""Why on-policy distillation goes wrong: gradients of truncated losses, prefixes that a teacher cannot go on from.

All of it is measured on responses that there are already; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.support import mass, support_mask
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.opd import Form, per_token
from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts
from kdbench.tracks.reasoning_rl.blocks.scoring import token_logits
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.evaluation import REPEATED, repeats

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


def collapse(rollouts: Rollouts) -> float:
    """Share of responses that did not end in time or that repeat themselves, in [0, 1]."""
    pairs = zip(rollouts.truncated.tolist(), rollouts.responses, strict=True)
    bad = [cut or repeats(row) > REPEATED for cut, row in pairs]
    return sum(bad) / len(bad)


def student_mass(student: Tensor, k: int) -> Tensor:
    """(N,) probability that the ``k`` most probable tokens of logits (N, V) have together, without gradient."""
    with torch.no_grad():
        return mass(student, support_mask(student, student, k))


def mass_identity(student: Tensor, teacher: Tensor, k: int) -> float:
    """Largest entry, in the logits (N, V), of ``grad trunc - grad trunc_sg - grad mass``; exactly 0 in theory.

    What distinguishes the two losses is that the first also drains probability out of the student's support. In
    float64, sums over tokens.
    """
    theirs, gradients = teacher.double(), {}
    with torch.enable_grad():
        for form in ("trunc", "trunc_sg", "mass"):
            own = student.detach().double().requires_grad_()
            if form == "mass":
                value = mass(own, support_mask(own, theirs, k))
            else:
                value = per_token(form, own, theirs, own.new_zeros(len(own), dtype=torch.int64), k=k)  # type: ignore[arg-type]
            (gradients[form],) = torch.autograd.grad(value.sum(), own)
    return float((gradients["trunc"] - gradients["trunc_sg"] - gradients["mass"]).abs().max())


def form_gradient(model: nn.Module, rollouts: Rollouts, teacher: Tensor, form: Form, k: int) -> Tensor:
    """(P,) gradient of the mean of a form over all tokens of the rollouts, in the trainable weights of a model."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.enable_grad():
        value = tok_mean(per_token(form, token_logits(model, rollouts.batch), teacher, rollouts.targets, k=k))
        parts = torch.autograd.grad(value, weights, allow_unused=True)
    flat = [torch.zeros_like(weight) if part is None else part for weight, part in zip(weights, parts, strict=True)]
    return torch.cat([part.flatten() for part in flat])


def gradient_bias(model: nn.Module, rollouts: Rollouts, teacher: Tensor, form: Form, k: int) -> dict[str, float]:
    """How far the gradient of a form is from that of the reverse KL over the vocabulary, on the same rollouts.

    ``gradient_bias``: norm of the difference over the norm of the latter; ``gradient_cosine`` between them. Empty where
    the gradient of the reverse KL is 0.
    """
    probe = deepcopy(model).requires_grad_(True).eval()
    full = form_gradient(probe, rollouts, teacher, "reverse", k)
    if not bool(full.norm() > 0):
        return {}
    other = form_gradient(probe, rollouts, teacher, form, k)
    return {
        "gradient_bias": float((other - full).norm() / full.norm()),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(other, full, dim=0)),
    }


def continuations(
    task: ReasoningTask,
    teacher: nn.Module,
    rollouts: Rollouts,
    shares: Sequence[float],
    *,
    generator: torch.Generator,
    **sampling: Any,
) -> dict[str, float]:
    """How often a teacher solves problems from the first part of responses that somebody else has written.

    ``continued/<per cent>/right`` and ``/wrong``: accuracy behind the first ``shares`` of the tokens of the responses
    that turned out right or wrong. The prefix counts towards the longest response, as it would have for its writer.
    """
    found, right = {}, rollouts.correct.numpy()
    for share in shares:
        heads = [row[: int(len(row) * share)] for row in rollouts.responses]
        rows = [[*prompt, *head] for prompt, head in zip(rollouts.prompts, heads, strict=True)]
        endings = task.sample(teacher, rows, generator=generator, metered=False, **sampling)
        whole = [[*head, *ending][: task.max_new] for head, ending in zip(heads, endings, strict=True)]
        solved = task.judged(rollouts.problems, rollouts.prompts, whole, metered=False).correct.numpy()
        for name, which in (("right", right), ("wrong", ~right)):
            if which.any():
                found[f"continued/{round(100 * share)}/{name}"] = float(solved[which].mean())
    return found


def internalised(
    task: ReasoningTask,
    before: nn.Module,
    after: nn.Module,
    problems: Sequence[Problem],
    privileged: Sequence[str],
    *,
    rule: str | None = None,
    samples: int = 4,
) -> dict[str, float]:
    """What is left of privileged information when it is taken away.

    With the prompts ``privileged`` (one a problem) that have it, ``pi_gap``: accuracy of the model ``before`` training
    with it minus without; ``pi_gain``: accuracy without it after training minus before; ``pi_share``: the gain over the
    gap, left out where there is no gap. A rule is part of what is right. ``without_pi`` is the accuracy after training.
    """
    plain = [task.prompt(problem) for problem in problems]

    def accuracy(model: nn.Module, prompts: Sequence[str]) -> float:
        return float(task.accuracy(model, problems, samples=samples, prompts=prompts, rule=rule, metered=False).mean())

    start, informed, end = accuracy(before, plain), accuracy(before, privileged), accuracy(after, plain)
    found = {"pi_gap": informed - start, "pi_gain": end - start, "with_pi": informed, "without_pi": end}
    if informed > start:
        found["pi_share"] = (end - start) / (informed - start)
    return found


def rule_followed(
    task: ReasoningTask, model: nn.Module, problems: Sequence[Problem], rule: str, *, samples: int = 4
) -> float | None:
    """Of the responses to plain prompts that are right either with the rule or without it, the share that follows it.

    Responses that are right both ways, such as palindromes of a reversed answer, say nothing and do not count. None
    where no response counts.
    """
    prompts = [task.prompt(problem) for problem in problems]
    made = task.rollouts(
        model,
        problems,
        group=samples,
        temperature=task.spec.evaluation.temperature,
        generator=torch.Generator().manual_seed(task.stream("eval")),
        prompts=prompts,
        metered=False,
    )
    ruled = task.judged(made.problems, made.prompts, made.responses, rule=rule, metered=False).correct.numpy()
    one_way = np.logical_xor(ruled, made.correct.numpy())
    return float(ruled[one_way].mean()) if one_way.any() else None
