"""Policies as tables of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TableNet(nn.Module):
    """Logits of actions for each state of each of several problems; all 0 at first, the uniform policy."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        """``shapes``: states and actions of each problem."""
        super().__init__()
        self.logits = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(self, states: Tensor, problem: int) -> Tensor:
        """States (...) int64 of a problem to logits (..., A). The gradient reaches the states that were asked for.

        A linear layer on one-hot states, so that FLOPs are counted as those of other networks.
        """
        logits = self.logits[problem]
        return nn.functional.one_hot(states, len(logits)).to(logits.dtype) @ logits

    @torch.no_grad()
    def tables(self) -> list[Tensor]:
        """(S, A) probabilities in float64, one table a problem."""
        return [logits.double().softmax(-1) for logits in self.logits]
