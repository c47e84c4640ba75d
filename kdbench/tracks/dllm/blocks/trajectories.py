"""How texts came to be: which position was committed at which forward, and what the canvas was at each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.tracks.dllm.batches import Prompts, Rows
from kdbench.training.loaders import Order


@dataclass
class Trajectories:
    """Texts that a network has written, with the order in which it did.

    Nothing is taken back, so that the order says every canvas on the way: :meth:`canvas`.
    """

    prompts: Prompts
    tokens: Tensor
    """(N, L) int64."""
    steps: Tensor
    """(N, L) int64: forward (from 0) at which a position was committed; -1: never (ends behind the text)."""
    correct: Tensor
    """(N,) bool."""
    answer: Tensor
    """(N, L) int64: the reference."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor) -> Trajectories:
        return Trajectories(
            self.prompts[rows], self.tokens[rows], self.steps[rows], self.correct[rows], self.answer[rows]
        )

    def to(self, device: torch.device | str) -> Trajectories:
        parts = [part.to(device) for part in (self.tokens, self.steps, self.correct, self.answer)]
        return Trajectories(self.prompts.to(device), *parts)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64: forwards of each."""
        return self.steps.amax(dim=1) + 1

    def canvas(self, step: Tensor, mask_id: int) -> Tensor:
        """(N, L) canvases before forward ``step`` (N,): 0 is all masks, :attr:`lengths` the whole text."""
        return torch.where(self.steps < step[:, None], self.tokens, mask_id)

    def only(self, rows: Tensor) -> Trajectories:
        """Those of ``rows`` (N,) bool."""
        return self[rows.nonzero().flatten()]

    def loader(self, batch_size: int, generator: torch.Generator) -> Rows:
        """Batches (:class:`Trajectories`) in a new random order each epoch."""
        size = min(batch_size, len(self))
        return Rows(Order(len(self), size, generator, self.tokens.device), self.__getitem__)
