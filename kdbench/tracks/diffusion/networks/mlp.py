"""A residual perceptron for points and small flattened images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.conditioning import Conditioning, with_image
from kdbench.tracks.diffusion.spec import Mlp


class FilmBlock(nn.Module):
    """A residual block whose normalised input is modulated by the condition (FiLM; Perez et al., AAAI 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = nn.Linear(width, 2 * width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor, vector: Tensor) -> Tensor:
        """(B, W) state and (B, W) condition to (B, W)."""
        scale, shift = self.affine(vector).chunk(2, -1)
        out: Tensor = h + self.down(F.silu(self.up(F.silu(self.norm(h) * (1 + scale) + shift))))
        return out


class ResidualMlp(nn.Module):
    """Raw network: states of any shape, flattened, through FiLM blocks; the last layer starts at zero.

    Feature maps ``block0``, ``block1``, ... are hidden states as (B, width, 1); ``mid`` is the one after half of the
    blocks.
    """

    def __init__(
        self,
        spec: Mlp,
        shape: Sequence[int],
        vocabulary: Sequence[int] = (),
        image_channels: int = 0,
        numbers: int = 1,
    ) -> None:
        """Raises ``UsageError`` for images beside states that are none."""
        super().__init__()
        if image_channels and len(shape) != 3:
            raise UsageError(f"states of shape {list(shape)} have no image beside them")
        self.shape, self.image_channels = tuple(shape), image_channels
        beside = image_channels * math.prod(shape[1:]) if image_channels else 0
        self.conditioning = Conditioning(spec.width, vocabulary, numbers)
        self.enter = nn.Linear(math.prod(shape) + beside, spec.width)
        self.blocks = nn.ModuleList(FilmBlock(spec.width) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.leave = nn.Linear(spec.width, math.prod(shape))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.middle = (spec.depth - 1) // 2
        self.channels = {**{f"block{i}": spec.width for i in range(spec.depth)}, "mid": spec.width}

    def forward(
        self, x: Tensor, c: Tensor, cond: Condition, features: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(B, *shape) to (B, *shape); see :class:`~kdbench.tracks.diffusion.networks.base.NetDenoiser`."""
        vector = self.conditioning(c, cond)
        rows = [x.flatten(1)]
        if self.image_channels:
            rows = [with_image(x, cond, self.image_channels).flatten(1)]
        h = self.enter(torch.cat(rows, 1))
        maps: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            h = block(h, vector)
            maps[f"block{number}"] = h[..., None]
        out = self.leave(F.silu(self.norm(h))).view(len(x), *self.shape)
        return (out, {**maps, "mid": maps[f"block{self.middle}"]}) if features else out
