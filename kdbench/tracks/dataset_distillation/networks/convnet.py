"""``convnet(D,W,norm)``: the network that data sets are distilled with since Zhao et al. (ICLR 2021, section 4.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps


def normalisation(norm: str, width: int) -> nn.Module:
    """``instance`` (each channel of each image), ``batch``, or ``none``."""
    made = {"instance": lambda: nn.GroupNorm(width, width), "batch": lambda: nn.BatchNorm2d(width), "none": nn.Identity}
    return made[norm]()


class ConvNet(Classifier):
    """D times a 3x3 convolution to W channels, normalisation, ReLU and 2x2 mean pooling; then a linear layer.

    Images of ``size`` pixels need ``size`` >= 2^D. Raises ``ValueError`` for smaller ones.
    """

    def __init__(self, depth: int, width: int, norm: str, *, channels: int, classes: int, size: int) -> None:
        side = size >> depth
        if side < 1:
            raise ValueError(f"convnet({depth},{width},{norm}): images of {size} pixels cannot be halved {depth} times")
        super().__init__()
        self.num_classes = classes
        self.convs = nn.ModuleList(nn.Conv2d(channels if i == 0 else width, width, 3, padding=1) for i in range(depth))
        self.norms = nn.ModuleList(normalisation(norm, width) for _ in range(depth))
        self.fc = nn.Linear(width * side * side, classes)

    def head(self) -> nn.Linear:
        return self.fc

    def taps(self, x: Tensor) -> Taps:
        stages = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.avg_pool2d(F.relu(norm(conv(x))), 2)
            stages.append(x)
        penult = x.flatten(1)
        return Taps(stages, penult, self.fc(penult))
