"""Messages between networks: states of any form as a grid of positions, and written back in the form of the reader.

States are (B, C, H, W) of convolutional networks and (B, P + S^2, D) of token networks with P tokens before their
patches. Codecs work on each position alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kdbench.training.projectors import as_map, resize, split_grid


def width_of(state: Tensor) -> int:
    """Channels of a map, width of tokens."""
    return state.shape[1] if state.dim() == 4 else state.shape[2]


def read_positions(state: Tensor, grid: int) -> Tensor:
    """A state as ``grid`` x ``grid`` positions, averaged or repeated; to (B, grid^2, width)."""
    return resize(as_map(state), grid).flatten(2).transpose(1, 2)


def write_state(positions: Tensor, like: Tensor) -> Tensor:
    """Positions (B, grid^2, width) as a state of the form of ``like`` and that width.

    Tokens before the patches, such as a class token, are the mean of all positions.
    """
    if like.dim() == 4:
        return resize(as_map(positions), like.shape[-1])
    prefix, patches = split_grid(like)
    written = read_positions(positions, round(patches.shape[1] ** 0.5))
    return torch.cat([positions.mean(1, keepdim=True).expand(-1, prefix.shape[1], -1), written], 1)


def codec(d_in: int, hidden: int, d_out: int) -> nn.Module:
    """Two linear layers with a ReLU between; (..., d_in) to (..., d_out)."""
    return nn.Sequential(nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, d_out))


def codec_parameters(shapes: Iterable[tuple[int, int]], hidden: int) -> int:
    """Parameters of codecs with the given (d_in, d_out)."""
    return sum(hidden * (d_in + d_out + 1) + d_out for d_in, d_out in shapes)


def codecs_of_size(shapes: Mapping[str, tuple[int, int]], parameters: int) -> nn.ModuleDict:
    """Codecs by name, all of the one hidden width (at least 1) that brings them closest to ``parameters`` in all."""
    base = codec_parameters(shapes.values(), 0)
    step = codec_parameters(shapes.values(), 1) - base
    hidden = max(1, round((parameters - base) / step))
    return nn.ModuleDict({name: codec(d_in, hidden, d_out) for name, (d_in, d_out) in shapes.items()})
