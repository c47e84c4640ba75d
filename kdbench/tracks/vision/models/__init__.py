"""Model families of the vision track, each with taps: residual networks, vision transformers, mixers, transformers'."""

from __future__ import annotations

import re
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.tracks.vision.models.cifar import CifarResNet, MobileNetV2, ShuffleNetV2, Vgg, WideResNet
from kdbench.tracks.vision.models.effnet import EfficientNetLite
from kdbench.tracks.vision.models.mixer import Mixer
from kdbench.tracks.vision.models.rn import ResNet
from kdbench.tracks.vision.models.vit import ViT
from kdbench.tracks.vision.spec import check_arch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "FAMILIES",
    "KINDS",
    "Classifier",
    "Mixer",
    "ResNet",
    "Taps",
    "ViT",
    "build",
    "family",
    "rebuild",
    "taps",
    "to_tokens",
]

FAMILIES: dict[str, Callable[..., Classifier]] = {
    "rn": ResNet,
    "vit": ViT,
    "mixer": Mixer,
    "effnet_lite0": EfficientNetLite,
    "resnet": CifarResNet,
    "wrn": WideResNet,
    "vgg": Vgg,
    "mobilenetv2": MobileNetV2,
    "shufflenetv2": ShuffleNetV2,
}
KINDS: dict[str, str] = {
    "acm_vit": "kdbench.tracks.vision.models.acm:AcmViT",
    "cells": "kdbench.tracks.vision.models.cells:CellNet",
    "clients": "kdbench.tracks.vision.models.clients:Clients",
    "mixture": "kdbench.tracks.vision.models.adaptive:Mixture",
    "nac": "kdbench.tracks.vision.models.nac:ModularNac",
    "shared_head": "kdbench.tracks.vision.models.shared_head:SharedHead",
    "vmoe": "kdbench.tracks.vision.models.moe:ModularMoE",
}
"""Networks that methods make and no architecture names, ``module:Class`` by kind."""


def family(arch: str) -> str:
    """What precedes the numbers of an architecture, a key of ``FAMILIES``, or ``hf``."""
    return re.split(r"[(:]", arch, maxsplit=1)[0]


def build(arch: str, num_classes: int, size: int = 16, *, pretrained: bool = False) -> Classifier:
    """A network from its architecture, such as ``rn(24,1)``, ``vit(64,4,4)``, ``mixer(64,4)`` or ``hf:FOLDER``.

    Inputs are (B, 3, size, size). Raises ``ValueError`` for an unknown architecture or one that does not fit the size,
    ``UsageError`` for a folder of transformers that cannot be loaded.
    """
    arch = check_arch(arch)
    kind = family(arch)
    if kind == "hf":
        from kdbench.tracks.vision.models.hf import HFClassifier

        return HFClassifier.open(arch[3:], num_classes, pretrained=pretrained)
    numbers = [int(number) for number in re.findall(r"\d+", arch.partition("(")[2])]
    model = FAMILIES[kind](*numbers, num_classes=num_classes, size=size)
    model.arch = arch
    return model


def rebuild(kind: str, config: Mapping[str, Any]) -> Classifier:
    """An untrained network of a kind from its configuration. Raises ``KeyError`` for an unknown kind."""
    made: Classifier = resolve_name(KINDS[kind])(**config)
    return made


def taps(model: Classifier, x: Tensor) -> Taps:
    """Intermediate representations of a batch: see :class:`Taps`."""
    return model.taps(x)


def to_tokens(stage: Tensor) -> Tensor:
    """A stage as tokens (B, N, D): positions of a map (B, C, H, W) row by row; tokens pass through."""
    return stage.flatten(2).transpose(1, 2) if stage.dim() == 4 else stage
