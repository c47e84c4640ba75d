"""Vision transformers ``vit(d, L, h)`` after Dosovitskiy et al., ICLR 2021, with 4x4 patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps

PATCH = 4


def tokens_of(size: int, arch: str) -> int:
    """Number of patches of an image. Raises ``ValueError`` where they do not tile it."""
    if size % PATCH:
        raise ValueError(f"{arch}: images of {size} pixels are not tiled by patches of {PATCH}")
    return (size // PATCH) ** 2


class Attention(nn.Module):
    """Multi-head self-attention of tokens (B, N, D)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm transformer block with an MLP of twice the width."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), Attention(d, heads)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Classifier):
    """``L`` blocks of width ``d`` with ``h`` heads over patches and a class token, learned positions."""

    def __init__(self, d: int, L: int, h: int, *, num_classes: int, size: int = 16) -> None:
        if d < 1 or L < 1 or h < 1 or d % h:
            raise ValueError(f"vit({d},{L},{h}): the width is a multiple of the heads, all are at least 1")
        super().__init__()
        self.num_classes = num_classes
        self.patch = nn.Conv2d(3, d, PATCH, PATCH)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.position = nn.Parameter(0.02 * torch.randn(1, 1 + tokens_of(size, f"vit({d},{L},{h})"), d))
        self.blocks = nn.ModuleList(Block(d, h) for _ in range(L))
        self.norm = nn.LayerNorm(d)
        self.fc = nn.Linear(d, num_classes)

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor) -> Taps:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.position
        stages, cls = [], []
        for block in self.blocks:
            x = block(x)
            stages.append(x[:, 1:])
            cls.append(x[:, 0])
        penult = self.norm(x[:, 0])
        return Taps(stages, penult, self.fc(penult), cls)
