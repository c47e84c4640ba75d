"""Networks for images from their names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.networks.convnet import ConvNet
from kdbench.tracks.dataset_distillation.networks.minis import (
    MiniDenseNet,
    MiniMobileNet,
    MiniResNet,
    MiniShuffleNet,
    MiniVgg,
    MiniWrn,
)
from kdbench.tracks.dataset_distillation.networks.names import GRAPHS, check_arch
from kdbench.tracks.vision.models import build as build_vision
from kdbench.tracks.vision.models.base import Classifier

MINIS: dict[str, Callable[..., Classifier]] = {
    "mini_resnet": MiniResNet,
    "mini_vgg": MiniVgg,
    "mini_mobilenet": MiniMobileNet,
    "mini_shufflenet": MiniShuffleNet,
    "mini_densenet": MiniDenseNet,
    "mini_wrn": MiniWrn,
}


def build(arch: str, shape: tuple[int, int, int], classes: int) -> Classifier:
    """A network for images of ``shape`` (C, H, W), initialised from the global generators.

    Raises ``ValueError`` for an unknown architecture and ``UsageError`` for one that does not fit the images.
    """
    arch = check_arch(arch)
    family, _, rest = arch.partition("(")
    channels, size = shape[0], shape[1]
    numbers = rest.rstrip(")").split(",")
    made: Classifier
    if family == "convnet":
        made = ConvNet(int(numbers[0]), int(numbers[1]), numbers[2], channels=channels, classes=classes, size=size)
    elif family in MINIS:
        made = MINIS[family](int(numbers[0]), channels=channels, classes=classes, size=size)
    elif family in GRAPHS:
        raise UsageError(f"{arch} is for graphs, but the task has images of shape {shape}")
    elif channels != 3:
        raise UsageError(f"{arch} is for RGB images, but the task's have {channels} channel", hint="use mini_resnet(8)")
    else:
        return build_vision(arch, classes, size)
    made.arch = arch
    return made


def has_batch_norm(model: nn.Module) -> bool:
    """Whether statistics of the training data are kept in the network."""
    return any(isinstance(module, nn.BatchNorm2d) and module.track_running_stats for module in model.modules())
