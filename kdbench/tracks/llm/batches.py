"""Batches of a split in random order, and what a student and its teacher say of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.training.loaders import Order


@dataclass
class TokenLogits:
    """Student and teacher on the same N next-token positions, row-major over (B, L-1).

    Where the task keeps the teacher's outputs as top-k, both sides are log-probabilities of the same k+1 events: the
    teacher's k most probable tokens, and all the others together. Softmax of either side is a distribution.
    """

    student: Tensor
    """(N, E) float32, with gradient."""
    teacher: Tensor
    """(N, E) float32, without gradient."""
    nll_of: Callable[[], Tensor]
    """Makes ``nll``, which takes a pass over the whole vocabulary: it is made once, where something reads it."""
    targets: Tensor
    """(N,) int64 token ids."""
    sequence: Tensor
    """(N,) int64 row of each position."""
    logits: Tensor | None = None
    """(N, V) float32 student logits with gradient, where ``student`` is of top-k events."""
    events: Tensor | None = None
    """(N, k) int64 token ids of the top-k events, where there are such."""

    @cached_property
    def nll(self) -> Tensor:
        """(N,) float32 next-token NLL of the student over its whole vocabulary, in nats, with gradient."""
        return self.nll_of()


class Loader:
    """Batches of a split in random order; each iteration is one epoch, and epochs differ."""

    def __init__(self, sequences: Sequences, size: int, split: str, generator: torch.Generator, device: torch.device):
        self.sequences, self.split, self.device = sequences, split, device
        self._order = Order(len(sequences), size, generator)

    def __iter__(self) -> Iterator[TextBatch]:
        return map(self._batch, self._order)

    def __len__(self) -> int:
        return len(self._order)

    def _batch(self, rows: Tensor) -> TextBatch:
        return self.sequences.batch(rows, self.split).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest epoch is; the state of the generator is not part of it."""
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from there."""
        self._order.load_state_dict(state)
