"""A replay buffer of sequences, and the adaptive use of it that DistiLLM proposes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdbench.losses.tokens import IGNORE
from kdbench.training.loaders import Epochs
from kdbench.training.rollouts import sampler


@dataclass(frozen=True)
class Row:
    """One sequence of a batch without its padding."""

    input_ids: Tensor
    """(l,) int64."""
    labels: Tensor
    """(l,) int64, aligned with the inputs."""
    index: Tensor
    """() int64: which item of the data it came from, -1 for none."""


def rows_of(batch: Any) -> list[Row]:
    """The sequences of a batch with fields ``input_ids``, ``attention_mask``, ``labels`` (B, L) and ``index`` (B,)."""
    kept = batch.attention_mask.bool()
    return [
        Row(ids[keep], labels[keep], index)
        for ids, labels, index, keep in zip(batch.input_ids, batch.labels, batch.index, kept, strict=True)
    ]


def batch_of(rows: Sequence[Row], like: Any) -> Any:
    """One batch of the type of ``like``: sequences padded on the right with token 0 (the mask says what is padding)."""
    ids = [row.input_ids for row in rows]
    return replace(
        like,
        input_ids=pad_sequence(ids, batch_first=True),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        labels=pad_sequence([row.labels for row in rows], batch_first=True, padding_value=IGNORE),
        index=torch.stack([row.index for row in rows]),
    )


class ReplayBuffer:
    """First in, first out: the newest ``capacity`` sequences."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a replay buffer holds at least one sequence, not {capacity}")
        self.capacity = capacity
        self._rows: deque[Row] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        return len(self._rows) == self.capacity

    def push(self, batch: Any) -> None:
        """Add every sequence of a batch; the oldest leave once the buffer is full."""
        self._rows.extend(rows_of(batch))

    def sample(self, n: int, rng: np.random.Generator) -> list[Row]:
        """``n`` different sequences, all of them where there are fewer. Raises ``ValueError`` if there is none."""
        if not self._rows:
            raise ValueError("the replay buffer is empty")
        chosen = rng.choice(len(self._rows), size=min(n, len(self._rows)), replace=False)
        return [self._rows[i] for i in chosen]

    def state_dict(self) -> dict[str, Tensor]:
        """Every sequence, one after the other in few tensors."""
        if not self._rows:
            return {}
        return {
            "lengths": torch.tensor([len(row.input_ids) for row in self._rows]),
            "input_ids": torch.cat([row.input_ids for row in self._rows]),
            "labels": torch.cat([row.labels for row in self._rows]),
            "index": torch.stack([row.index for row in self._rows]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._rows.clear()
        if state:
            lengths = state["lengths"].tolist()
            ids, labels = (torch.split(state[name], lengths) for name in ("input_ids", "labels"))
            columns = (ids, labels, state["index"].unbind())
            self._rows.extend(Row(*each) for each in zip(*columns, strict=True))


class AdaptiveReplay:
    """Batches by DistiLLM's adaptive scheduler (Ko et al. 2024, section 3.2): data, the student's samples, or replay.

    The threshold phi starts at ``threshold``. Where a validation loss is at least ``tolerance`` above the one at
    the last increase of phi (at first: the one before training), the mismatch between data and student is growing,
    and phi rises by ``increase``, to 1 at most. At step s of S, with r drawn uniformly:

    * r < phi (1 - s / S), or r < phi while the buffer is not full: fresh samples, which also go into the buffer;
    * else r < phi: sequences from the buffer;
    * else: the batch of the data.
    """

    def __init__(
        self,
        source: Iterable[Any],
        sample: Callable[[int], Any],
        *,
        steps: int,
        rng: np.random.Generator,
        capacity: int = 1000,
        threshold: float = 0.0,
        increase: float = 0.1,
        tolerance: float = 0.1,
    ) -> None:
        """``source`` gives the batches of one epoch, ``sample(n)`` n responses of the student as it is now."""
        self.source, self.sample, self.steps, self.rng = Epochs(source), sample, steps, rng
        self.buffer = ReplayBuffer(capacity)
        self.phi, self.increase, self.tolerance = threshold, increase, tolerance
        self.reference: float | None = None
        self.counts = {"fresh": 0, "replay": 0, "data": 0}

    def observe(self, validation_loss: float) -> None:
        """Tell the scheduler a validation loss; the first is the reference before training."""
        if self.reference is None:
            self.reference = validation_loss
        elif validation_loss >= self.reference + self.tolerance:
            self.phi = min(1.0, self.phi + self.increase)
            self.reference = validation_loss

    def choose(self, draw: float, step: int) -> str:
        """What step ``step`` (0-based) trains on when r is ``draw``: ``fresh``, ``replay`` or ``data``."""
        if draw < self.phi * (1 - step / self.steps) or (draw < self.phi and not self.buffer.full):
            return "fresh"
        return "replay" if draw < self.phi else "data"

    def __iter__(self) -> Iterator[Any]:
        """One epoch; the count of steps goes on from epoch to epoch."""
        return self._chosen(self.source.epoch())

    def _chosen(self, source: Iterator[Any]) -> Iterator[Any]:
        for batch in source:
            kind = self.choose(self.rng.random(), sum(self.counts.values()))
            self.counts[kind] += 1
            if kind == "fresh":
                fresh = self.sample(len(batch))
                self.buffer.push(fresh)
                yield fresh
            elif kind == "replay":
                yield batch_of(self.buffer.sample(len(batch), self.rng), batch)
            else:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Everything but the states of the generators and the weights of the student."""
        return {
            "phi": self.phi,
            "reference": self.reference,
            "counts": self.counts,
            "buffer": self.buffer.state_dict(),
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self.phi, self.reference, self.counts = state["phi"], state["reference"], dict(state["counts"])
        self.buffer.load_state_dict(state["buffer"])
        self.source.load_state_dict(state["source"])


def adaptive_batches(
    task: Any,
    student: nn.Module,
    *,
    steps: int,
    max_new: int,
    temperature: float = 1.0,
    validations: int = 10,
    **scheduler: Any,
) -> tuple[AdaptiveReplay, Callable[[int], None]]:
    """An :class:`AdaptiveReplay` of a task's training data and its student, and what ``fit`` calls after each step.

    The validation loss is taken before training and ``validations`` times during it, evenly spaced. phi and the
    numbers of batches of each kind are logged then. ``scheduler`` goes to :class:`AdaptiveReplay`.
    """
    batches = AdaptiveReplay(
        task.train_loader(),
        sampler(task, student, max_new=max_new, temperature=temperature),
        steps=steps,
        rng=task.rng("adaptive"),
        **scheduler,
    )
    batches.observe(task.validate(student)["loss"])
    every = max(1, steps // validations)

    def on_step(step: int) -> None:
        if step % every == 0:
            loss = task.validate(student)["loss"]
            batches.observe(loss)
            task.log(step, validation_loss=loss, phi=batches.phi, **batches.counts)

    return batches, on_step
