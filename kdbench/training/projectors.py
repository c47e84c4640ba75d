"""Small networks that map one network's features to the shape of another's; trained along, dropped at evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["linear", "conv", "mlp"]


class ConvNormRelu(nn.Sequential):
    """1x1 convolution, batch normalisation and, where ``relu``, a ReLU; (B, d_in, H, W) to (B, d_out, H, W)."""

    def __init__(self, d_in: int, d_out: int, *, relu: bool) -> None:
        layers: list[nn.Module] = [nn.Conv2d(d_in, d_out, 1, bias=False), nn.BatchNorm2d(d_out)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


def projector(kind: Kind, d_in: int, d_out: int, *, relu: bool = False) -> nn.Module:
    """A map between widths.

    ``linear``: (..., d_in) to (..., d_out). ``conv``: (B, d_in, H, W) to (B, d_out, H, W) by a 1x1 convolution and
    batch normalisation, followed by a ReLU where ``relu``. ``mlp``: two linear layers, d_out wide in between.
    """
    if kind == "linear":
        return nn.Linear(d_in, d_out)
    if kind == "conv":
        return ConvNormRelu(d_in, d_out, relu=relu)
    return nn.Sequential(nn.Linear(d_in, d_out), nn.ReLU(), nn.Linear(d_out, d_out))


def split_grid(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix tokens and grid tokens; (B, P + S^2, D) to (B, P, D), (B, S^2, D) with the largest S.

    Token networks put their class token, if they have one, before the patches of a square grid.
    """
    count = tokens.shape[1]
    prefix = count - math.isqrt(count) ** 2
    return tokens[:, :prefix], tokens[:, prefix:]


def as_map(stage: Tensor) -> Tensor:
    """A stage of any network as a feature map; (B, C, H, W) as it is, (B, N, D) to (B, D, S, S) without prefix."""
    if stage.dim() == 4:
        return stage
    grid = split_grid(stage)[1]
    side = math.isqrt(grid.shape[1])
    return grid.transpose(1, 2).reshape(len(grid), -1, side, side)


def stage_at(stages: Sequence[Tensor], depth: float) -> Tensor:
    """The stage at a relative depth in [0, 1] (1: the last) as a map (B, C, H, W)."""
    return as_map(stages[max(0, round(depth * len(stages)) - 1)])


def resize(features: Tensor, side: int) -> Tensor:
    """Feature maps averaged (or repeated) to a grid of ``side``; (B, C, H, W) to (B, C, side, side)."""
    if features.shape[-2:] == (side, side):
        return features
    return F.adaptive_avg_pool2d(features, side)
