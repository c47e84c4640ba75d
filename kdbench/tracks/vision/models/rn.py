"""Residual networks ``rn(w, n)`` and ``rn(w, a, b, c)`` after He et al., CVPR 2016, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = _conv(c_out, c_out, 3), nn.BatchNorm2d(c_out)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Sequential(_conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(Classifier):
    """Stem 3x3 with stride 2 to ``w`` channels, three stages of basic blocks with w, 2w, 4w channels.

    ``blocks`` of each stage: one number for all three, or three.
    """

    def __init__(self, w: int, *blocks: int, num_classes: int, size: int = 16) -> None:
        if w < 1 or min(blocks) < 1:
            raise ValueError(f"rn({','.join(map(str, (w, *blocks)))}): width and blocks are at least 1")
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(_conv(3, w, 3, 2), nn.BatchNorm2d(w), nn.ReLU())
        self.stages = nn.ModuleList()
        c_in = w
        depths = blocks * 3 if len(blocks) == 1 else blocks
        for n, width, stride in zip(depths, (w, 2 * w, 4 * w), (1, 2, 2), strict=True):
            stage = [BasicBlock(c_in if i == 0 else width, width, stride if i == 0 else 1) for i in range(n)]
            self.stages.append(nn.Sequential(*stage))
            c_in = width
        self.fc = nn.Linear(c_in, num_classes)

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor) -> Taps:
        x = self.stem(x)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        penult = torch.mean(x, dim=(2, 3))
        return Taps(stages, penult, self.fc(penult))
