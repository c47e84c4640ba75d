"""Prompts, and batches of prompts with what answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.training.loaders import Order


@dataclass
class Prompts:
    """Prompts in a window of P tokens."""

    ids: Tensor
    """(B, P) int64, with padding."""
    present: Tensor
    """(B, P) bool: what is attended to; padding is not."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Prompts:
        return Prompts(self.ids[rows], self.present[rows])

    def to(self, device: torch.device | str) -> Prompts:
        return Prompts(self.ids.to(device), self.present.to(device))


@dataclass
class Batch:
    """Prompts with reference responses."""

    prompts: Prompts
    answer: Tensor
    """(B, L) int64: the response, then end tokens up to the end of the canvas."""
    index: Tensor
    """(B,) int64: rows of the split."""

    def __len__(self) -> int:
        return len(self.answer)

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(self.prompts[rows], self.answer[rows], self.index[rows])

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.prompts.to(device), self.answer.to(device), self.index.to(device))

    @property
    def length(self) -> int:
        """Positions of the canvas (L)."""
        return self.answer.shape[1]


class Rows:
    """Batches that a function makes of rows in random order, epoch by epoch; its place can be saved."""

    def __init__(self, order: Order, make: Callable[[Tensor], Any]) -> None:
        self.order, self._make = order, make

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        for rows in self.order:
            yield self._make(rows)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order.load_state_dict(state)
