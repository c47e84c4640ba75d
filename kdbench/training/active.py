"""Active distillation: a student chooses, round by round, for which unlabelled samples it asks a costly teacher.

The loop is the same for every strategy: train a student from scratch on the labelled set, let the strategy choose
samples of the pool by what that student says of them, buy the teacher's soft labels, train again from scratch on all
that is there, and so on. The last student spends the budget's steps, the earlier ones ``aux_steps``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses.logits import cross_entropy, kd_kl

if TYPE_CHECKING:
    from kdbench.task import Task


Ask = Callable[[Tensor], Tensor]
"""The teacher's logits (k, C) of the pool's samples at (k,) positions; it counts and limits them itself."""


@dataclass
class PoolView:
    """What a strategy may look at when it chooses."""

    probs: Tensor
    """(n, C): the student's probabilities of the samples that are left."""
    features: Tensor
    """(n, D): the student's penultimate features of these samples."""
    taken: Tensor
    """(m, D): the student's features of the labelled and queried samples."""
    positions: Tensor
    """(n,): positions in the pool of the samples that are left."""
    ask: Ask
    """Asking the teacher about positions of the pool spends queries."""
    teacher_accuracy: float
    """Of the teacher on the labelled samples that the method set aside for it, in [0, 1]."""
    generator: torch.Generator


Strategy = Callable[[PoolView, int], Tensor]
"""Chooses k of the samples that are left: (k,) positions *within the view*."""


@dataclass
class TransferBatch:
    """Samples with a label or a soft label."""

    x: Tensor
    y: Tensor
    """(B,) labels, -1 for soft-labelled samples."""
    soft: Tensor
    """(B, C) teacher logits of soft-labelled samples, 0 elsewhere."""

    def __len__(self) -> int:
        return len(self.y)


@dataclass
class TransferSet:
    """Labelled samples and those that were bought."""

    x: Tensor
    y: Tensor
    soft: Tensor

    def epochs(
        self, batch_size: int, generator: torch.Generator, device: torch.device, augment: Callable[[Tensor], Tensor]
    ) -> Iterator[TransferBatch]:
        """Batches without end, reshuffled in each epoch."""
        while True:
            for rows in torch.split(torch.randperm(len(self.y), generator=generator), batch_size):
                x = augment(self.x[rows])
                yield TransferBatch(x.to(device), self.y[rows].to(device), self.soft[rows].to(device))


def transfer_loss(logits: Tensor, batch: TransferBatch, temperature: float) -> Tensor:
    """Mean over the batch of cross-entropy for labelled and T^2 KL to the teacher for soft-labelled samples."""
    hard = batch.y >= 0
    share = hard.float().mean()
    soft = kd_kl(logits[~hard], batch.soft[~hard], temperature) if bool((~hard).any()) else logits.sum() * 0
    return share * cross_entropy(logits, batch.y) + (1 - share) * soft


@dataclass
class Round:
    """What one round left."""

    positions: list[int]
    """Positions in the pool of the samples that it queried."""
    queries: int
    """Samples that the strategy has chosen up to and including this round."""
    validation: dict[str, float]
    """Of the student trained after the queries."""
    selection_seconds: float = 0.0
    """Wall-clock time that the strategy took to choose."""


@dataclass
class ActiveResult:
    """The last student and the way to it."""

    student: nn.Module
    rounds: list[Round] = field(default_factory=list)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, device: torch.device, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) and penultimate features (N, D) of a network in eval mode, on the CPU."""
    model.eval()
    parts = torch.split(x, batch_size)
    taps = [model.taps(part.to(device)) for part in parts]  # type: ignore[operator]
    logits, features = torch.cat([each.logits for each in taps]), torch.cat([each.penult for each in taps])
    return F.softmax(logits.float(), -1).cpu(), features.cpu()


def active_distillation(
    task: Task,
    labelled: tuple[Tensor, Tensor],
    pool: Tensor,
    ask: Ask,
    strategy: Strategy,
    *,
    rounds: int,
    batch: int,
    teacher_accuracy: float,
    temperature: float = 1.0,
    augment: Callable[[Tensor], Tensor] = lambda x: x,
    classes: int,
    on_round: Callable[[int, nn.Module], None] | None = None,
) -> ActiveResult:
    """Run the loop: ``rounds`` times query ``batch`` samples and train a student from scratch.

    ``labelled`` are images (L, ...) and labels (L,), ``pool`` images (n, ...), all on the CPU; ``classes`` is the
    number of classes. ``on_round(r, student)`` is called after the training of every round, 0 being that on the
    labelled samples alone.
    """
    x, y = labelled
    taken = torch.empty(0, dtype=torch.int64)
    result: ActiveResult | None = None
    history: list[Round] = []
    for number in range(rounds + 1):
        chosen, seconds = torch.empty(0, dtype=torch.int64), 0.0
        if number:
            assert result is not None
            left = torch.ones(len(pool), dtype=torch.bool)
            left[taken] = False
            positions = left.nonzero().flatten()
            view = _view(task, result.student, (x, pool), taken, positions, ask, teacher_accuracy, number)
            started = time.perf_counter()
            chosen = positions[strategy(view, min(batch, len(positions)))]
            seconds = time.perf_counter() - started
            taken = torch.cat([taken, chosen])
        soft = ask(taken).cpu() if len(taken) else torch.empty(0, classes)
        transfer = TransferSet(
            torch.cat([x, pool[taken]]),
            torch.cat([y, torch.full((len(taken),), -1)]),
            torch.cat([torch.zeros(len(y), classes), soft]),
        )
        last = number == rounds
        student = task.student()
        task.fit(
            student,
            lambda model, each: transfer_loss(model(each.x), each, temperature),
            loader=transfer.epochs(task.spec.recipe.batch_size, task.generator("data"), task.device, augment),
            steps=task.budget.steps(),
            spend="steps" if last else "aux_steps",
            tag="" if last else f"round{number}",
        )
        history.append(Round(chosen.tolist(), len(taken), task.validate(student), seconds))
        if on_round is not None:
            on_round(number, student)
        result = ActiveResult(student, history)
    assert result is not None
    return result


def _view(
    task: Task,
    student: nn.Module,
    images: tuple[Tensor, Tensor],
    taken: Tensor,
    positions: Tensor,
    ask: Ask,
    teacher_accuracy: float,
    number: int,
) -> PoolView:
    labelled, pool = images
    probs, features = outputs(student, pool[positions], task.device)
    _, known = outputs(student, torch.cat([labelled, pool[taken]]), task.device)
    generator = task.generator(f"round-{number}")
    return PoolView(probs, features, known, positions, ask, teacher_accuracy, generator)


def area(queries: list[int], values: list[float]) -> float:
    """Mean height of a curve over the number of queries, by trapezoids; the value itself for a single point."""
    if len(queries) < 2 or queries[-1] == queries[0]:
        return values[-1]
    return float(np.trapezoid(values, queries)) / (queries[-1] - queries[0])
