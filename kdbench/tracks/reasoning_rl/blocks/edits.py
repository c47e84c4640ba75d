"""Groups of rollouts with some members replaced by responses from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


def replace_rows(
    task: ReasoningTask,
    policy: nn.Module,
    rollouts: Rollouts,
    rows: Sequence[int],
    responses: Sequence[Sequence[int]],
    *,
    origin: Sequence[int],
    rule: str | None = None,
    reward: str | None = None,
) -> Rollouts:
    """The rollouts with ``responses`` in the place of ``rows``; ``origin`` says who wrote each (0 and up: a teacher).

    Verdicts, rewards, masks and the behaviour log-probabilities of all rows are derived again: those of a replaced
    row are the policy's for what now stands there. Groups stay as they are. ``reward`` is a kind of
    :func:`~kdbench.tracks.reasoning_rl.data.verify.reward`, the task's where none is given.
    """
    if not len(rows):
        return rollouts
    written, origins = [list(row) for row in rollouts.responses], rollouts.origin.clone()
    for row, response, source in zip(rows, responses, origin, strict=True):
        written[row] = list(response)
        origins[row] = source
    edited = task.judged(rollouts.problems, rollouts.prompts, written, rule=rule, reward=reward)
    old = task.behaviour(policy, edited.batch, rollouts.temperature)
    return replace(edited, group=rollouts.group, origin=origins, old_logp=old, temperature=rollouts.temperature)


def members(rollouts: Rollouts) -> list[Tensor]:
    """Rows of each group, in the order of the groups."""
    return [(rollouts.group.cpu() == name).nonzero()[:, 0] for name in rollouts.group.unique().tolist()]


def unsolved(rollouts: Rollouts) -> list[Tensor]:
    """Rows of the groups in which no response is right."""
    correct = rollouts.correct
    return [rows for rows in members(rollouts) if not bool(correct[rows].any())]


def random_slots(rows: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """``count`` different rows of some, at random; all of them where there are fewer."""
    chosen: list[int] = rows[torch.randperm(len(rows), generator=generator)[:count]].tolist()
    return chosen
