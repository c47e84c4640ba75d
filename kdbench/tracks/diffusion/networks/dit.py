"""A diffusion transformer (Peebles and Xie, ICCV 2023): patches, adaLN-zero blocks, two-dimensional sine positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.attention import Attention
from kdbench.tracks.diffusion.networks.conditioning import Conditioning, with_image
from kdbench.tracks.diffusion.networks.tokens import TokenEncoder
from kdbench.tracks.diffusion.spec import Dit


def positions(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width) sines and cosines; half of the width says the row, half the column. 4 divides width."""
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))

    def encoded(count: int) -> Tensor:
        angles = torch.arange(count)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    down = encoded(rows)[:, None].expand(-1, columns, -1)
    across = encoded(columns)[None].expand(rows, -1, -1)
    return torch.cat([down, across], 2).flatten(0, 1)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(B, N, W) scaled and shifted by (B, W)."""
    return h * (1 + scale[:, None]) + shift[:, None]


class DitBlock(nn.Module):
    """Attention and a feed-forward layer, both modulated and gated by the condition; does nothing at first.

    Cross-attention to a context comes between, where the block has it.
    """

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width) if context is not None else None
        self.cross = Attention(width, heads, context, zero=True) if context is not None else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, vector: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens (B, N, W), condition (B, W) and context (B, L, D) to tokens (B, N, W)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(vector).chunk(6, 1)
        h = h + gate_1[:, None] * self.attention(modulated(self.norm_1(h), scale_1, shift_1))
        if self.cross is not None:
            h = h + self.cross(self.cross_norm(h), context)  # type: ignore[misc]
        fed = self.down(F.gelu(self.up(modulated(self.norm_2(h), scale_2, shift_2)), approximate="tanh"))
        return h + gate_2[:, None] * fed


class SmallDit(nn.Module):
    """Raw network. Feature maps ``block0``, ``block1``, ... are tokens after each block as (B, width, rows, columns),
    ``mid`` those after half of the blocks.
    """

    def __init__(
        self,
        spec: Dit,
        shape: Sequence[int],
        vocabulary: Sequence[int] = (),
        image_channels: int = 0,
        numbers: int = 1,
    ) -> None:
        """Raises ``UsageError`` where patches do not fit the shape, or the width is not a multiple of 4."""
        super().__init__()
        if len(shape) != 3 or shape[1] % spec.patch or shape[2] % spec.patch:
            raise UsageError(f"patches of {spec.patch} x {spec.patch} do not fit the shape {list(shape)}")
        if spec.width % 4:
            raise UsageError(f"the width of a transformer over patches is a multiple of 4, not {spec.width}")
        self.shape, self.patch, self.image_channels = tuple(shape), spec.patch, image_channels
        self.grid = (shape[1] // spec.patch, shape[2] // spec.patch)
        cross = spec.tokens == "cross" and bool(vocabulary)
        self.conditioning = Conditioning(spec.width, () if cross else vocabulary, numbers)
        self.tokens = TokenEncoder(vocabulary, spec.width, spec.heads) if cross else None
        self.patches = nn.Conv2d(shape[0] + image_channels, spec.width, spec.patch, stride=spec.patch)
        self.places: Tensor
        self.register_buffer("places", positions(*self.grid, spec.width), persistent=False)
        context = spec.width if cross else None
        self.blocks = nn.ModuleList(DitBlock(spec.width, spec.heads, context) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(spec.width, 2 * spec.width)
        self.leave = nn.Linear(spec.width, shape[0] * spec.patch**2)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.middle = (spec.depth - 1) // 2
        self.channels = {**{f"block{i}": spec.width for i in range(spec.depth)}, "mid": spec.width}

    def _unpatched(self, tokens: Tensor) -> Tensor:
        """(B, N, C p p) to (B, C, H, W)."""
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def forward(
        self, x: Tensor, c: Tensor, cond: Condition, features: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(B, *shape) to (B, *shape); see :class:`~kdbench.tracks.diffusion.networks.base.NetDenoiser`."""
        vector = self.conditioning(c, cond)
        context = None if self.tokens is None else self.tokens(cond)
        h = self.patches(with_image(x, cond, self.image_channels)).flatten(2).transpose(1, 2) + self.places.to(x)
        maps: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks):
            h = block(h, vector, context)
            maps[f"block{number}"] = h.transpose(1, 2).unflatten(2, self.grid)
        shift, scale = self.modulation(vector).chunk(2, 1)
        out = self._unpatched(self.leave(modulated(self.norm(h), scale, shift)))
        return (out, {**maps, "mid": maps[f"block{self.middle}"]}) if features else out

    def attention_logits(
        self, x: Tensor, c: Tensor, cond: Condition, blocks: Iterable[int] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """One forward: its output, and logits (B, heads, N, N) of the self-attention of ``blocks`` (None: of all).

        Gradients flow through both. The logits are those of what each block was given, whatever hooks have changed.
        """
        found: dict[int, Tensor] = {}
        handles = []
        for number in range(len(self.blocks)) if blocks is None else blocks:

            def keep(module: Attention, args: tuple[Tensor, ...], output: Tensor, number: int = number) -> None:
                found[number] = module.logits(*args)

            handles.append(self.blocks[number].attention.register_forward_hook(keep))
        try:
            out = self(x, c, cond)
        finally:
            for handle in handles:
                handle.remove()
        return out, found
