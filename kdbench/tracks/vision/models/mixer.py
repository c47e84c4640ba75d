"""MLP-Mixers ``mixer(d, L)`` after Tolstikhin et al., NeurIPS 2021, with 4x4 patches."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.tracks.vision.models.vit import PATCH, tokens_of

TOKEN_HIDDEN = 32


def _mlp(d: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))


class MixerBlock(nn.Module):
    """Pre-norm token mixing (hidden width 32), then channel mixing (hidden width 2d)."""

    def __init__(self, d: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.token = nn.LayerNorm(d), _mlp(tokens, TOKEN_HIDDEN)
        self.norm2, self.channel = nn.LayerNorm(d), _mlp(d, 2 * d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel(self.norm2(x))


class Mixer(Classifier):
    """``L`` mixing blocks of width ``d`` over patches, mean over tokens before the classifier."""

    def __init__(self, d: int, L: int, *, num_classes: int, size: int = 16) -> None:
        if d < 1 or L < 1:
            raise ValueError(f"mixer({d},{L}): width and depth are at least 1")
        super().__init__()
        self.num_classes = num_classes
        self.patch = nn.Conv2d(3, d, PATCH, PATCH)
        self.blocks = nn.ModuleList(MixerBlock(d, tokens_of(size, f"mixer({d},{L})")) for _ in range(L))
        self.norm = nn.LayerNorm(d)
        self.fc = nn.Linear(d, num_classes)

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor) -> Taps:
        x = self.patch(x).flatten(2).transpose(1, 2)
        stages = []
        for block in self.blocks:
            x = block(x)
            stages.append(x)
        penult = self.norm(x).mean(dim=1)
        return Taps(stages, penult, self.fc(penult))
