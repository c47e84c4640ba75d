"""The loops of the track: training on a policy's own responses, and the loss of group-relative policy optimisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from kdbench.losses.policy_gradient import Aggregation, aggregate, clipped, group_advantage
from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, token_logits

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask
    from kdbench.training.loop import FitResult
    from kdbench.training.state import Stateful

PolicyLoss = Callable[[Any, Rollouts], Tensor | Mapping[str, Tensor]]


def advantages(rollouts: Rollouts, scale: Literal["group", "none"] = "group") -> Tensor:
    """(N,) the group-relative advantage of each token's response."""
    return rollouts.per_token(group_advantage(rollouts.reward, rollouts.group, scale=scale))


def grpo_terms(
    rollouts: Rollouts,
    logp: Tensor,
    *,
    scale: Literal["group", "none"] = "group",
    how: Aggregation = "token_mean",
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
    length: int = 0,
) -> Tensor:
    """The loss of GRPO on rollouts whose tokens have log-probabilities ``logp`` (N,) under the policy, a scalar.

    ``length`` is the longest that a response may be, for ``how="const"``.
    """
    values = clipped(logp, rollouts.old_logp, advantages(rollouts, scale), low=low, high=high, dual=dual)
    return aggregate(values, rollouts.sequence, how, rows=len(rollouts), length=length)


def policy_logp(model: nn.Module, rollouts: Rollouts) -> Tensor:
    """(N,) log-probabilities of the response tokens, with gradient, at the temperature that they were sampled at."""
    return chosen(token_logits(model, rollouts.batch), rollouts.targets, rollouts.temperature)


def fit_on_policy(
    task: ReasoningTask,
    student: nn.Module,
    loss: PolicyLoss,
    *,
    steps: int | None = None,
    state: Iterable[Stateful] = (),
    on_step: Callable[[int], None] | None = None,
    **sampling: Any,
) -> FitResult:
    """Train a policy on its own responses: ``task.fit`` over ``task.on_policy(student, **sampling)``.

    The mean reward, the share of solved prompts and the mean length of every logged round are added to the curve.
    """
    loader = task.on_policy(student, **sampling)

    def logged(model: Any, rollouts: Rollouts) -> Tensor | Mapping[str, Tensor]:
        value = loss(model, rollouts)
        parts = {"policy": value} if isinstance(value, Tensor) else dict(value)
        task.watch(rollouts)
        return parts

    every = max(1, int(steps if steps is not None else task.budget.remaining("steps")) // 25)

    def after(step: int) -> None:
        if on_step is not None:
            on_step(step)
        if step % every == 0:
            task.log(step, **task.watched())

    return task.fit(student, logged, loader=loader, steps=steps, state=[*state, task.watching], on_step=after)
