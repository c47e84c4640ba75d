"""A small U-Net in the manner of DDPM++ as EDM uses it (Karras et al., NeurIPS 2022, appendix F; Song et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.attention import Attention, divisor
from kdbench.tracks.diffusion.networks.conditioning import Conditioning, with_image
from kdbench.tracks.diffusion.networks.tokens import TokenEncoder
from kdbench.tracks.diffusion.spec import UNet

SKIP_SCALE = 0.5**0.5
"""Residual sums are multiplied by this, so that their variance stays."""
HEAD_WIDTH = 16


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels or more."""
    return nn.GroupNorm(divisor(channels, min(32, channels // 4)), channels)


class MapAttention(nn.Module):
    """Attention of the places of a map (B, C, H, W), to each other or to a context; adds nothing at first."""

    def __init__(self, channels: int, context: int | None = None) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, divisor(channels, channels // HEAD_WIDTH), context, zero=True)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        added = self.attention(tokens, context).transpose(1, 2).unflatten(2, h.shape[2:])
        return (h + added) * SKIP_SCALE


class UNetBlock(nn.Module):
    """Two convolutions with group normalisation, the second modulated (AdaGN); then attention where asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        *,
        resample: Literal["up", "down"] | None = None,
        attention: bool = False,
        context: int | None = None,
    ) -> None:
        """``width``: of the modulating vector; ``context``: of the tokens of cross-attention, None for none."""
        super().__init__()
        self.resample = resample
        self.norm_in, self.conv_in = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(width, 2 * outputs)
        self.norm_out, self.conv_out = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = MapAttention(outputs) if attention else None
        self.cross = MapAttention(outputs, context) if context is not None else None

    def _resampled(self, h: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(h, 2)
        return F.interpolate(h, scale_factor=2, mode="nearest") if self.resample == "up" else h

    def forward(self, h: Tensor, vector: Tensor, context: Tensor | None = None) -> Tensor:
        """``h`` (B, C, H, W), ``vector`` (B, W), ``context`` (B, L, D)."""
        scale, shift = self.affine(vector)[..., None, None].chunk(2, 1)
        change = self.conv_in(self._resampled(F.silu(self.norm_in(h))))
        change = self.conv_out(F.silu(self.norm_out(change) * (1 + scale) + shift))
        out: Tensor = (self.skip(self._resampled(h)) + change) * SKIP_SCALE
        if self.attention is not None:
            out = self.attention(out)
        return out if self.cross is None else self.cross(out, context)


class SmallUNet(nn.Module):
    """Raw network. Feature maps: ``enc0``, ``enc1``, ... and ``dec0``, ... are the last of a resolution (0 the finest)
    on the way down and up, ``mid`` the bottleneck between.

    Cross-attention, as self-attention, is at the lowest resolution. Blocks take ``(h, vector, context)``; they are in
    ``encoder``, ``middle`` and ``decoder``.
    """

    def __init__(
        self,
        spec: UNet,
        shape: Sequence[int],
        vocabulary: Sequence[int] = (),
        image_channels: int = 0,
        numbers: int = 1,
    ) -> None:
        """Raises ``UsageError`` for shapes that cannot be halved as often as the network does."""
        super().__init__()
        fold, levels = (4 if spec.fold == 4 else 2 if spec.fold else 1), len(spec.multipliers)
        least = fold * 2 ** (levels - 1)
        if len(shape) != 3 or shape[1] % least or shape[2] % least:
            raise UsageError(
                f"the network halves images to 1/{least} of their side, which does not fit the shape {list(shape)}"
            )
        self.fold, self.image_channels, self.levels = fold, image_channels, levels
        widths = [spec.channels * multiplier for multiplier in spec.multipliers]
        width = 4 * spec.channels
        cross = spec.tokens == "cross" and bool(vocabulary)
        self.conditioning = Conditioning(width, () if cross else vocabulary, numbers)
        self.tokens = TokenEncoder(vocabulary, width) if cross else None
        lowest = {"attention": spec.attention, "context": width if cross else None}

        def block(inputs: int, level: int, resample: Literal["up", "down"] | None = None) -> UNetBlock:
            extra = lowest if level == levels - 1 and resample is None else {}
            return UNetBlock(inputs, widths[level], width, resample=resample, **extra)  # type: ignore[arg-type]

        self.conv_in = nn.Conv2d((shape[0] + image_channels) * fold**2, widths[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        now, skips = widths[0], [widths[0]]
        for level in range(levels):
            stage = [] if level == 0 else [UNetBlock(now, now, width, resample="down")]
            skips += [now] * len(stage)
            for _ in range(spec.blocks):
                stage.append(block(now, level))
                now = widths[level]
                skips.append(now)
            self.encoder.append(nn.ModuleList(stage))
        self.middle = nn.ModuleList(UNetBlock(now, now, width, **lowest) for _ in range(2))  # type: ignore[arg-type]
        for level in reversed(range(levels)):
            stage = [] if level == levels - 1 else [UNetBlock(now, now, width, resample="up")]
            for _ in range(spec.blocks + 1):
                stage.append(block(now + skips.pop(), level))
                now = widths[level]
            self.decoder.append(nn.ModuleList(stage))
        self.norm_out = group_norm(now)
        self.conv_out = nn.Conv2d(now, shape[0] * fold**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        maps = {f"{part}{level}": widths[level] for part in ("enc", "dec") for level in range(levels)}
        self.channels = {**maps, "mid": widths[-1]}

    def forward(
        self, x: Tensor, c: Tensor, cond: Condition, features: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(B, *shape) to (B, *shape); see :class:`~kdbench.tracks.diffusion.networks.base.NetDenoiser`."""
        vector = self.conditioning(c, cond)
        context = None if self.tokens is None else self.tokens(cond)
        h = self.conv_in(F.pixel_unshuffle(with_image(x, cond, self.image_channels), self.fold))
        maps: dict[str, Tensor] = {}
        skips = [h]
        for level, stage in enumerate(self.encoder):
            for block in stage:
                h = block(h, vector, context)
                skips.append(h)
            maps[f"enc{level}"] = h
        for block in self.middle:
            h = block(h, vector, context)
        maps["mid"] = h
        for level, stage in zip(reversed(range(self.levels)), self.decoder, strict=True):
            for block in stage:
                if block.resample is None:
                    h = torch.cat([h, skips.pop()], 1)
                h = block(h, vector, context)
            maps[f"dec{level}"] = h
        out = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.fold)
        return (out, maps) if features else out
