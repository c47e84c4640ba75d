"""Turns: a critic is updated several times for each update of the generator, at a rate of its own (TTUR).

The budget counts updates of either alike, so that methods with many critic updates make fewer of the generator's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdbench.errors import JobError, OverBudget, UsageError
from kdbench.tracks.diffusion.batches import Batch, Draw, Turn
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.ema import HalfLife
from kdbench.tracks.diffusion.blocks.notes import Notes as Notes
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.training.loop import POINTS, FitResult
from kdbench.training.state import Stateful

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

log = logging.getLogger(__name__)

CriticLoss = Callable[[Draw, Batch | None], Mapping[str, Tensor]]
GeneratorLoss = Callable[[Denoiser, Draw, Batch | None], Mapping[str, Tensor]]


def generator_updates(task: DiffusionTask, ratio: int, steps: int | None = None, updates: int | None = None) -> int:
    """Updates of a generator that come with ``ratio`` updates of a critic each.

    ``updates`` says it; otherwise as many as ``steps`` updates of either allow, by default all that are left of the
    task's. A budget that is too small for a whole turn still has one, of fewer updates of the critic
    (:func:`turn_ratio`). Raises ``OverBudget`` where there is none at all.
    """
    if updates is None:
        left = task.budget.remaining("steps") if steps is None else steps
        if left == math.inf:
            raise JobError("this task has no limit on steps; say how many steps or updates to make")
        updates = max(int(left) // (ratio + 1), 1 if left >= min(2, ratio + 1) else 0)
    if updates < 1:
        raise OverBudget(f"not enough steps are left for one update of the generator and {ratio} of the critic")
    return updates


def turn_ratio(task: DiffusionTask, ratio: int, steps: int | None = None) -> int:
    """``ratio``, or fewer updates of the critic where the budget is too small for a single whole turn; says so."""
    left = task.budget.remaining("steps") if steps is None else steps
    if 2 <= left <= ratio:
        log.warning("%d steps are too few for %d updates of the critic: the only turn has %d", left, ratio, left - 1)
        return int(left) - 1
    return ratio


def window(decay: float, updates: int) -> float:
    """The decay, or less: averages of weights reach over a tenth of the updates at most, and so forget the first."""
    return min(decay, 1 - 1 / max(2.0, updates / 10))


def alternate(
    task: DiffusionTask,
    generator: Denoiser,
    critic: Critic | None,
    critic_loss: CriticLoss | None,
    generator_loss: GeneratorLoss,
    *,
    ratio: int = 5,
    steps: int | None = None,
    updates: int | None = None,
    real: bool = False,
    batch_size: int | None = None,
    lr: float,
    critic_lr: float | None = None,
    ema: float | HalfLife | None = 0.99,
    notes: Notes | None = None,
    state: Iterable[Stateful] = (),
    on_step: Callable[[int], None] | None = None,
    loader: Iterable[Turn] | None = None,
    tag: str = "",
    **recipe: Any,
) -> FitResult:
    """Train a generator and its critic in turns: ``ratio`` updates of the critic, then one of the generator.

    ``critic_loss(draw, real)`` and ``generator_loss(generator, draw, real)`` return named losses whose sum is
    minimised; ``real`` is a batch of the data where ``real=True``, else None. Every update has noise, conditions and
    data of its own. The critic learns from samples that ``critic_loss`` makes without gradient; outside its turn its
    parameters are frozen, and no loss of its turn reaches another network. Without a critic ``ratio`` is 0, and the
    generator learns alone.

    ``steps`` counts updates of either, ``updates`` those of the generator (:func:`generator_updates`); what is left is
    the default. All are charged to ``steps``; ``critic_updates`` are metered beside. ``ema`` is a decay, or an average
    with a half-life; a decay is lowered so far that the average reaches over no more than the last tenth of the updates
    (:func:`window`). The averaged generator is ``ema`` of the result, which is never None: without an average it is
    the generator. What ``notes`` collects is logged, and so are the losses of the critic, as ``critic/<name>``. Further
    arguments are those of ``task.fit`` and fields of the recipe, whose schedule is constant unless it is given. What
    the losses change beside the critic is declared as ``state``.

    Raises ``OverBudget`` where no turn is left, ``Diverged`` where a loss is not finite, ``UsageError`` for a
    ratio below 1 with a critic and where a recipe accumulates batches.
    """
    if ratio < (0 if critic is None else 1):
        raise UsageError(f"a critic is updated at least once for each update of the generator, not {ratio} times")
    if critic is None and ratio:
        raise UsageError(f"there is no critic to update {ratio} times")
    if recipe.get("accumulate", task.spec.recipe.accumulate) != 1:
        raise UsageError("turns cannot accumulate batches: every batch comes with updates of the critic")
    count = generator_updates(task, ratio, steps, updates)
    if count == 1:
        ratio = turn_ratio(task, ratio, steps)
    if ratio:
        task.budget.spend("steps", count * ratio)  # task.fit charges those of the generator
        task.budget.spend("critic_updates", count * ratio)
    if critic is not None and critic_lr is not None:
        critic.rate(critic_lr)
    seen = Notes() if notes is None else notes
    average = ema if isinstance(ema, HalfLife) else None
    every, prefix = max(1, count // POINTS), f"{tag}/" if tag else ""
    rows = task.spec.recipe.batch_size if batch_size is None else batch_size

    def loss(model: Denoiser, turn: Turn) -> Mapping[str, Tensor]:
        reals = turn.reals or [None] * (ratio + 1)
        for draw, batch in zip(turn.critics, reals[:-1], strict=True):
            assert critic is not None
            assert critic_loss is not None
            with critic.training():
                found = critic.update(critic_loss(draw, batch))
            seen.add(**{f"critic/{name}": value for name, value in found.items()})
        return generator_loss(model, turn.draw, reals[-1])

    def after(step: int) -> None:
        if average is not None:
            average.update(rows)
        if on_step is not None:
            on_step(step)
        if step % every == 0 or step == count:
            task.log(step, **{prefix + name: value for name, value in seen.read().items()})

    result = task.fit(
        generator,
        loss,
        loader=task.turns(ratio, real=real, batch_size=batch_size) if loader is None else loader,
        steps=count,
        ema=None if average is not None or ema is None else window(ema, count),
        on_step=after,
        state=[*([] if critic is None else critic.parts), seen, *([] if average is None else average.parts), *state],
        tag=tag,
        lr=lr,
        **{"schedule": "constant", **recipe},
    )
    return replace(result, ema=average.network if average is not None else result.ema or generator)
