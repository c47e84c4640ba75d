"""Several teachers in one batch: each problem belongs to a domain, and each domain has an expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.specs import domain_of

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask

Experts = Mapping[str, nn.Module]


def domains(problems: Sequence[Problem]) -> dict[str, list[int]]:
    """Places of the problems of each domain, domains in the order of their names."""
    names = [domain_of(problem.family) for problem in problems]
    return {name: [i for i, found in enumerate(names) if found == name] for name in sorted(set(names))}


def experts_of(task: ReasoningTask) -> dict[str, nn.Module]:
    """The frozen expert of every domain that the training problems belong to.

    Raises ``JobError`` where the task has no expert of one of them.
    """
    return {name: task.checkpoint(f"expert_{name}") for name in domains(task.problems("train"))}


def everywhere(task: ReasoningTask, teacher: nn.Module) -> dict[str, nn.Module]:
    """One teacher as the expert of every domain."""
    return dict.fromkeys(domains(task.problems("train")), teacher)


def routed_logp(task: ReasoningTask, experts: Experts, rollouts: Rollouts, temperature: float = 1.0) -> Tensor:
    """(N,) log-probabilities of the response tokens, those of each response by the expert of its domain alone.

    Each expert reads its own responses and no others: what is metered is one forward a response, whatever their number.
    """
    found = torch.empty(len(rollouts.sequence), device=task.device)
    groups: dict[int, list[int]] = {}
    for name, places in domains(rollouts.problems).items():
        groups.setdefault(id(experts[name]), []).extend(places)
    by_id = {id(expert): expert for expert in experts.values()}
    for key, places in groups.items():
        rows = torch.tensor(sorted(places))
        part = rollouts.rows(rows) if len(rows) < len(rollouts) else rollouts
        logp = chosen(frozen_logits(task, by_id[key], part.batch), part.targets, temperature)
        found[torch.isin(rollouts.sequence, rows.to(rollouts.sequence.device))] = logp
    return found


def routed_answers(
    task: ReasoningTask, experts: Experts, problems: Sequence[Problem], *, generator: torch.Generator, **sampling: Any
) -> Rollouts:
    """Responses to problems, those of each domain by its expert, in the order of the domains."""
    parts = []
    for name, places in domains(problems).items():
        asked = [problems[i] for i in places]
        parts.append(task.rollouts(experts[name], asked, generator=generator, **sampling))
    return task.judged(
        [problem for part in parts for problem in part.problems],
        [row for part in parts for row in part.prompts],
        [row for part in parts for row in part.responses],
        metered=False,  # they were judged when they were sampled
    )


@torch.no_grad()
def average(models: Sequence[nn.Module], shares: Sequence[float], into: nn.Module) -> nn.Module:
    """Put the weighted mean of the weights of networks of one shape into another; shares are divided by their sum.

    Raises ``ValueError`` without networks or with shares that are not positive in sum.
    """
    if not models or len(models) != len(shares) or sum(shares) <= 0:
        raise ValueError(f"{len(models)} networks need as many shares, positive in sum, not {list(shares)}")
    states = [model.state_dict() for model in models]
    total = sum(shares)
    mixed = {}
    for name, value in into.state_dict().items():
        parts = [state[name].to(value.device) for state in states]
        if value.is_floating_point():
            mean = sum(part.double() * (share / total) for part, share in zip(parts, shares, strict=True))
            mixed[name] = torch.as_tensor(mean, dtype=value.dtype)
        else:
            mixed[name] = parts[0]
    into.load_state_dict(mixed)
    return into
