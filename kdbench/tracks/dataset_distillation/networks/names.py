"""Names of architectures. Free of torch."""

from __future__ import annotations

import re

from kdbench.errors import did_you_mean
from kdbench.tracks.vision.spec import ARCH as VISION

MINIS = ("mini_resnet", "mini_vgg", "mini_mobilenet", "mini_shufflenet", "mini_densenet", "mini_wrn")
"""Families for small images, one number each: the channels of the first stage."""
GRAPHS = ("gcn", "gin", "gat")
"""Families for graphs, two numbers each: layers and width."""

ARCH = re.compile(
    r"convnet\(\d+,\d+,(instance|batch|none)\)"
    rf"|({'|'.join(MINIS)})\(\d+\)"
    rf"|({'|'.join(GRAPHS)})\(\d+,\d+\)"
)
FAMILIES = ("convnet", *MINIS, *GRAPHS)


def check_arch(arch: str) -> str:
    """The architecture without spaces. Raises ``ValueError`` for one that there is not.

    ``convnet(depth,width,norm)`` with norm instance, batch or none; ``mini_resnet(w)`` and its like;
    ``gcn(layers,width)`` and its like; for RGB images also those of the vision track, such as ``resnet(20)`` or
    ``vgg(8)``.
    """
    arch = arch.replace(" ", "")
    if ARCH.fullmatch(arch) or VISION.fullmatch(arch):
        return arch
    family = arch.partition("(")[0]
    hint = did_you_mean(family, list(FAMILIES), label="families")
    raise ValueError(f"unknown architecture {arch!r}; examples are convnet(2,16,instance), mini_resnet(8). {hint}")
