"""Small networks with batch normalisation, one of each family that committees are made of: ``mini_resnet(w)`` ...

Three resolutions with w, 2w and 4w channels, made of the blocks of :mod:`kdbench.tracks.vision.models.cifar`. Images
may have any number of channels and 8 pixels or more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.cifar import Inverted, PreActivation, Residual, Shuffle, Staged, conv, conv_bn


class MiniResNet(Staged):
    """One residual block a resolution (He et al., CVPR 2016)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        stages: list[nn.Module] = [Residual(w, w, 1), Residual(w, 2 * w, 2), Residual(2 * w, 4 * w, 2)]
        super().__init__(conv_bn(channels, w, 3), stages, nn.Identity(), 4 * w, classes)


class MiniWrn(Staged):
    """One pre-activation block a resolution, twice as wide (Zagoruyko and Komodakis, BMVC 2016)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        widths = (2 * w, 4 * w)
        stages: list[nn.Module] = [PreActivation(w, widths[0], 1), PreActivation(*widths, 2)]
        last = nn.Sequential(nn.BatchNorm2d(widths[1]), nn.ReLU())
        super().__init__(conv(channels, w, 3), stages, last, widths[1], classes)


class MiniVgg(Staged):
    """Two convolutions a resolution, one at the last, with maxima between them (Simonyan and Zisserman, ICLR 2015)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        stages: list[nn.Module] = [
            nn.Sequential(conv_bn(channels, w, 3), conv_bn(w, w, 3)),
            nn.Sequential(nn.MaxPool2d(2), conv_bn(w, 2 * w, 3), conv_bn(2 * w, 2 * w, 3)),
            nn.Sequential(nn.MaxPool2d(2), conv_bn(2 * w, 4 * w, 3)),
        ]
        super().__init__(nn.Identity(), stages, nn.Identity(), 4 * w, classes)


class MiniMobileNet(Staged):
    """Inverted bottlenecks with expansion 3 (Sandler et al., CVPR 2018)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        stages: list[nn.Module] = [
            Inverted(w, w, 1, 3),
            nn.Sequential(Inverted(w, 2 * w, 2, 3), Inverted(2 * w, 2 * w, 1, 3)),
            Inverted(2 * w, 4 * w, 2, 3),
        ]
        super().__init__(conv_bn(channels, w, 3), stages, conv_bn(4 * w, 8 * w, 1), 8 * w, classes)


class MiniShuffleNet(Staged):
    """Blocks whose halves are interleaved (Ma et al., ECCV 2018)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        if w % 2:
            raise ValueError(f"mini_shufflenet({w}): the width is even")
        stages: list[nn.Module] = [
            Shuffle(w, w, 1),
            nn.Sequential(Shuffle(w, 2 * w, 2), Shuffle(2 * w, 2 * w, 1)),
            nn.Sequential(Shuffle(2 * w, 4 * w, 2), Shuffle(4 * w, 4 * w, 1)),
        ]
        super().__init__(conv_bn(channels, w, 3), stages, conv_bn(4 * w, 4 * w, 1), 4 * w, classes)


class _Dense(nn.Module):
    """Layers that each add ``growth`` channels to all that were there; normalisation and ReLU first."""

    def __init__(self, c_in: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [c_in + i * growth for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv(width, growth, 3)) for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class _Transition(nn.Module):
    """Half of the channels at half of the resolution."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(c_in), conv(c_in, c_in // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class MiniDenseNet(Staged):
    """Two layers a resolution, each with w further channels (Huang et al., CVPR 2017)."""

    def __init__(self, w: int, *, channels: int, classes: int, size: int) -> None:
        width, stages = 2 * w, list[nn.Module]()
        for number in range(3):
            parts: list[nn.Module] = []
            if number:
                parts.append(_Transition(width))
                width //= 2
            parts.append(_Dense(width, w, 2))
            width += 2 * w
            stages.append(nn.Sequential(*parts))
        last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        super().__init__(conv(channels, 2 * w, 3), stages, last, width, classes)
