"""Small networks that map one network's features to the shape of another's; trained along, dropped at evaluation."""

from __future__ import annotations

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
    batch normalisation, followed by a ReLU where ``relu``. ``mlp``: two linear layers with the width d_out between them.
    """
    if kind == "linear":
        return nn.Linear(d_in, d_out)
    if kind == "conv":
        return ConvNormRelu(d_in, d_out, relu=relu)
    return nn.Sequential(nn.Linear(d_in, d_out), nn.ReLU(), nn.Linear(d_out, d_out))


def to_map(tokens: Tensor) -> Tensor:
    """Tokens of a square grid as a feature map; (B, N, D) to (B, D, sqrt N, sqrt N). Raises ``ValueError`` otherwise."""
    batch, count, width = tokens.shape
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"{count} tokens do not form a square grid")
    return tokens.transpose(1, 2).reshape(batch, width, side, side)


def resize(features: Tensor, side: int) -> Tensor:
    """Feature maps averaged (or repeated) to a grid of ``side``; (B, C, H, W) to (B, C, side, side)."""
    if features.shape[-2:] == (side, side):
        return features
    return F.adaptive_avg_pool2d(features, side)
