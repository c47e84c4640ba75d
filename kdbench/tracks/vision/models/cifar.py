"""The networks that papers distil on CIFAR: residual networks, wide ones, VGG, MobileNetV2 and ShuffleNetV2.

Sizes and widths are those of the pairs that Tian, Krishnan and Isola (ICLR 2020) introduced and everybody compares on,
for images of 32 x 32 pixels: ``resnet(d)`` or ``resnet(d,4)`` with four times the channels, ``wrn(d,k)``, ``vgg(d)``,
``mobilenetv2(50)`` (width 0.5) and ``shufflenetv2(100)`` (width 1). Parameters are initialised as He et al. (ICCV 2015)
propose for convolutions and as torch does otherwise. Stages are the representations after each resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, *, act: bool = True) -> nn.Sequential:
    """Convolution, batch normalisation and, by default, a ReLU."""
    layers = [conv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out), *([nn.ReLU()] if act else [])]
    return nn.Sequential(*layers)


class Staged(Classifier):
    """A stem, stages, an optional last layer on the map, the mean over positions and a linear layer."""

    def __init__(self, stem: nn.Module, stages: list[nn.Module], last: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem, self.stages, self.last = stem, nn.ModuleList(stages), last
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor) -> Taps:
        x = self.stem(x)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        penult = torch.mean(self.last(x), dim=(2, 3))
        return Taps(stages, penult, self.fc(penult))


# --- residual networks ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two 3x3 convolutions, each before its normalisation, and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out, 3, act=False))
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else conv_bn(c_in, c_out, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PreActivation(nn.Module):
    """As :class:`Residual`, with normalisation and ReLU first (Zagoruyko and Komodakis, BMVC 2016)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), conv(c_in, c_out, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(c_out), conv(c_out, c_out, 3)
        self.shortcut = None if c_in == c_out else conv(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(y))))


def _row(block: type[nn.Module], c_in: int, c_out: int, stride: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(block(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1) for i in range(count)))


class CifarResNet(Staged):
    """``resnet(d)``: stem and three stages of (d - 2) / 6 blocks with 16, 32, 64 channels; ``resnet(d,4)``: 4 times."""

    def __init__(self, d: int, times: int = 1, *, num_classes: int, size: int = 32) -> None:
        if d < 8 or (d - 2) % 6:
            raise ValueError(f"resnet({d}): the depth is 6 n + 2")
        widths = (16 * times, 32 * times, 64 * times)
        stem = 16 if times == 1 else 32  # the wider ones start with 32 channels
        stages = [
            _row(Residual, c_in, c_out, stride, (d - 2) // 6)
            for c_in, c_out, stride in zip((stem, *widths), widths, (1, 2, 2))
        ]
        super().__init__(conv_bn(3, stem, 3), stages, nn.Identity(), widths[-1], num_classes)


class WideResNet(Staged):
    """``wrn(d,k)``: three stages of (d - 4) / 6 pre-activation blocks with 16 k, 32 k, 64 k channels."""

    def __init__(self, d: int, k: int, *, num_classes: int, size: int = 32) -> None:
        if d < 10 or (d - 4) % 6:
            raise ValueError(f"wrn({d},{k}): the depth is 6 n + 4")
        widths = (16 * k, 32 * k, 64 * k)
        stages = [
            _row(PreActivation, c_in, c_out, stride, (d - 4) // 6)
            for c_in, c_out, stride in zip((16, *widths), widths, (1, 2, 2))
        ]
        last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        super().__init__(conv(3, 16, 3), stages, last, widths[-1], num_classes)


# --- others -----------------------------------------------------------------------------------------------------------

VGGS = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
}
"""Channels of the convolutions in each of the five stages (Simonyan and Zisserman, ICLR 2015)."""


class Vgg(Staged):
    """``vgg(8)`` or ``vgg(13)`` with batch normalisation; the image is halved between the first four stages."""

    def __init__(self, d: int, *, num_classes: int, size: int = 32) -> None:
        if d not in VGGS:
            raise ValueError(f"vgg({d}): there are {' and '.join(f'vgg({depth})' for depth in VGGS)}")
        stages, c_in = [], 3
        for number, widths in enumerate(VGGS[d]):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < number < 4 else []
            for width in widths:
                layers.append(conv_bn(c_in, width, 3))
                c_in = width
            stages.append(nn.Sequential(*layers))
        super().__init__(nn.Identity(), stages, nn.Identity(), c_in, num_classes)


class Inverted(nn.Module):
    """1x1 to ``times`` the channels, 3x3 by channel, 1x1 back without ReLU (Sandler et al., CVPR 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, times: int) -> None:
        super().__init__()
        inner = c_in * times
        self.body = nn.Sequential(
            conv_bn(c_in, inner, 1), conv_bn(inner, inner, 3, stride, inner), conv_bn(inner, c_out, 1, act=False)
        )
        self.same = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


class MobileNetV2(Staged):
    """``mobilenetv2(50)``: width 50 %, expansion 6, the last layer 1280 wide; a stem of stride 2 at 32 pixels."""

    ROWS = (
        ((1, 16, 1, 1), (6, 24, 2, 1)),
        ((6, 32, 3, 2),),
        ((6, 64, 4, 2), (6, 96, 3, 1)),
        ((6, 160, 3, 2), (6, 320, 1, 1)),
    )
    """Of each stage: expansion, channels, blocks and stride of the first."""

    def __init__(self, percent: int, *, num_classes: int, size: int = 32) -> None:
        if percent < 10:
            raise ValueError(f"mobilenetv2({percent}): the width is given in percent, 10 at least")
        stages, c_in = [], int(32 * percent / 100)
        stem = conv_bn(3, c_in, 3, 2)
        for rows in self.ROWS:
            blocks = []
            for times, channels, count, stride in rows:
                c_out = int(channels * percent / 100)
                for i in range(count):
                    blocks.append(Inverted(c_in, c_out, stride if i == 0 else 1, times))
                    c_in = c_out
            stages.append(nn.Sequential(*blocks))
        super().__init__(stem, stages, conv_bn(c_in, 1280, 1), 1280, num_classes)


class Shuffle(nn.Module):
    """Half of the channels through 1x1, 3x3 by channel, 1x1; then the halves are interleaved (Ma et al., ECCV 2018).

    With stride 2 both halves come from all channels.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        half = c_out // 2
        own = c_in if stride > 1 else half
        self.other = None
        if stride > 1:
            self.other = nn.Sequential(conv_bn(c_in, c_in, 3, stride, c_in, act=False), conv_bn(c_in, half, 1))
        self.body = nn.Sequential(
            conv_bn(own, half, 1), conv_bn(half, half, 3, stride, half, act=False), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.other is not None else x.chunk(2, dim=1)
        both = torch.stack([left if self.other is None else self.other(left), self.body(right)], dim=2)
        return both.flatten(1, 2)


class ShuffleNetV2(Staged):
    """``shufflenetv2(100)``: stages of 4, 8 and 4 blocks with 116, 232, 464 channels at 100 %, a stem of 1x1 and 24."""

    def __init__(self, percent: int, *, num_classes: int, size: int = 32) -> None:
        widths = {50: (48, 96, 192), 100: (116, 232, 464), 150: (176, 352, 704)}.get(percent)
        if widths is None:
            raise ValueError(f"shufflenetv2({percent}): the width is 50, 100 or 150 percent")
        stages = [_row(Shuffle, c_in, c_out, 2, n) for c_in, c_out, n in zip((24, *widths), widths, (4, 8, 4))]
        super().__init__(conv_bn(3, 24, 1), stages, conv_bn(widths[-1], 1024, 1), 1024, num_classes)
