"""Exit branches: small networks that classify from an intermediate stage; trained along, dropped at evaluation.

The earlier the stage, the deeper the branch, so that every branch ends at the depth of the whole network. Convolutional
stages are (B, C, H, W), token stages (B, N, D) with a square grid of patches after an optional class token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdbench.training.projectors import split_grid


class SeparableConv(nn.Sequential):
    """Two depthwise-separable 3x3 convolutions, the first with stride 2; (B, d_in, H, W) to (B, d_out, H/2, W/2)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        def half(width: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(d_in, d_in, 3, stride, 1, groups=d_in, bias=False),
                nn.Conv2d(d_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]

        super().__init__(*half(d_in, 2), *half(d_out, 1))


class PatchMerging(nn.Module):
    """Each 2x2 block of patches becomes one, prefix tokens stay; (B, P + S^2, d) to (B, P + (S/2)^2, d)."""

    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, width, bias=False))
        self.activation = nn.Identity() if last else nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        prefix, grid = split_grid(tokens)
        side = math.isqrt(grid.shape[1])
        if side % 2:
            raise ValueError(f"a grid of {side} x {side} patches cannot be merged two by two")
        blocks = grid.reshape(len(grid), side // 2, 2, side // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return torch.cat([prefix, self.activation(self.reduce(blocks.flatten(1, 2)))], 1)


class TokenPool(nn.Module):
    """The class token where there is one, else the mean of the patches; (B, N, D) to (B, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        prefix, grid = split_grid(tokens)
        return prefix[:, 0] if prefix.shape[1] else grid.mean(1)


def conv_branch(channels: int, depth: int, width: int, classes: int) -> nn.Module:
    """``depth`` separable convolutions that double the channels, the last one to ``width``; pooling; linear.

    ``depth = 0``, for the last stage: a 1x1 convolution to ``width`` in their place.
    """
    layers: list[nn.Module] = []
    for index in range(depth):
        d_out = width if index == depth - 1 else 2 * channels
        layers.append(SeparableConv(channels, d_out))
        channels = d_out
    if depth == 0:
        layers.append(nn.Conv2d(channels, width, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def token_branch(count: int, width: int, depth: int, classes: int, *, final_grid: int = 2, heads: int = 4) -> nn.Module:
    """Patch merging down to ``final_grid``, max(``depth``, 1) transformer blocks, class token or mean, linear.

    ``count`` tokens of ``width``, prefix included. Blocks are pre-norm with an MLP four times as wide.
    """
    side = math.isqrt(count)
    merges = max(0, round(math.log2(side / final_grid)))
    merging = [PatchMerging(width, last=index == merges - 1) for index in range(merges)]
    blocks = [
        nn.TransformerEncoderLayer(
            width, math.gcd(width, heads), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        for _ in range(max(depth, 1))
    ]
    return nn.Sequential(*merging, *blocks, TokenPool(), nn.Linear(width, classes))


def exit_branch(stage: Tensor, depth: int, width: int, classes: int) -> nn.Module:
    """The branch for stages like the example ``stage``; ``width``: channels at the end of a convolutional one."""
    if stage.dim() == 4:
        return conv_branch(stage.shape[1], depth, width, classes)
    return token_branch(stage.shape[1], stage.shape[2], depth, classes)
