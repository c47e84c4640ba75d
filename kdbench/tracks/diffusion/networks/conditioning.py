"""The vector that modulates every block: the conditioning number and, where there is no cross-attention, the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.tokens import SummedTokens

LOWEST, HIGHEST = 1 / 8, 8.0
"""Periods per unit of the conditioning number, which is about -1 to 1. Fast waves would make derivatives along time,
which continuous-time consistency and flow maps need, large."""


class Fourier(nn.Module):
    """Cosines and sines of a number, at frequencies in geometric progression: (B,) to (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        """``width`` is even."""
        super().__init__()
        steps = torch.linspace(math.log(LOWEST), math.log(HIGHEST), width // 2)
        self.register_buffer("frequencies", 2 * math.pi * steps.exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        angles = value[:, None] * self.frequencies.to(value)
        return torch.cat([angles.cos(), angles.sin()], 1)


class Conditioning(nn.Module):
    """Conditioning numbers and summed tokens to a vector (B, width)."""

    def __init__(self, width: int, vocabulary: Sequence[int] = (), numbers: int = 1) -> None:
        """``vocabulary``: slots whose embeddings are summed; empty: none. ``numbers``: see :meth:`add_number`."""
        super().__init__()
        self.width, self.waves = width, min(width + width % 2, 64)
        self.fourier = Fourier(self.waves)
        self.maps = nn.ModuleList([nn.Linear(self.waves, width)])
        self.tokens = SummedTokens(vocabulary, width) if vocabulary else None
        self.mix = nn.Linear(width, width)
        for _ in range(numbers - 1):
            self.add_number()

    @property
    def numbers(self) -> int:
        """Conditioning numbers that it reads."""
        return len(self.maps)

    def add_number(self) -> None:
        """Let it read one more number (a second time, a guidance scale), of scale 1. Nothing changes until training:
        the weights that read it are zero."""
        device = self.mix.weight.device
        added = nn.Linear(self.waves, self.width, bias=False, device=device)
        nn.init.zeros_(added.weight)
        self.maps.append(added)

    def forward(self, c: Tensor, cond: Condition) -> Tensor:
        """``c`` is (B,), or (B, K) for networks of K numbers. Raises ``UsageError`` for another K."""
        columns = c[:, None] if c.ndim == 1 else c
        if columns.shape[1] != self.numbers:
            raise UsageError(f"the network reads {self.numbers} conditioning numbers, not {columns.shape[1]}")
        vector = self.maps[0](self.fourier(columns[:, 0]))
        for number in range(1, self.numbers):
            vector = vector + self.maps[number](self.fourier(columns[:, number]))
        if self.tokens is not None:
            vector = vector + self.tokens(cond)
        return F.silu(self.mix(F.silu(vector)))


def with_image(x: Tensor, cond: Condition, channels: int) -> Tensor:
    """State and the condition's image of ``channels`` channels as one input, (B, C + channels, H, W).

    Raises ``UsageError`` where the image is missing, unasked for or of another shape.
    """
    image = cond.image
    if image is None and not channels:
        return x
    if image is None or image.shape[1:] != (channels, *x.shape[2:]):
        given = "none" if image is None else str(list(image.shape[1:]))
        wanted = str([channels, *x.shape[2:]]) if channels else "no image"
        raise UsageError(f"the network reads {wanted} beside the state, and the condition has {given}")
    return torch.cat([x, image], 1)
