"""Gaussian policies of dense layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GaussianMLP(nn.Module):
    """Mean and one standard deviation per action; may be told, by a one-hot code, which robot it drives."""

    def __init__(self, observed: int, hidden: Sequence[int], actions: int, codes: int = 0, std: float = 0.3) -> None:
        """``observed`` numbers of an observation; ``codes`` slots of the robot's code, 0: it is not told."""
        super().__init__()
        self.codes = codes
        widths = [observed + codes, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ELU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], actions)
        self.log_std = nn.Parameter(torch.full((actions,), std).log())
        self.register_buffer("mean", torch.zeros(observed))
        self.register_buffer("std", torch.ones(observed))

    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Observations are shifted and scaled by these (O,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def features(self, vector: Tensor, robot: Tensor | None = None) -> Tensor:
        """(B, H) input of the last layer."""
        inputs = (vector - self.mean) / self.std
        if self.codes:
            code = vector.new_zeros(len(vector), self.codes) if robot is None else F.one_hot(robot, self.codes)
            inputs = torch.cat([inputs, code.to(inputs.dtype)], -1)
        return self.body(inputs)

    def forward(self, vector: Tensor, robot: Tensor | None = None) -> Tensor:
        """(B, A) mean actions of observations (B, O); ``robot`` (B,) int64, None: the code is 0."""
        return self.head(self.features(vector, robot))
