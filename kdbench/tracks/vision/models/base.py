"""What every network of the track offers beside its logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class Taps:
    """Representations of one forward pass, with gradients; nothing stays behind in the network."""

    stages: list[Tensor]
    """From the input to the output: (B, C, H, W) of convolutional networks, (B, N, D) of token networks without their
    class token. Residual networks: one per stage; token networks: one per block."""
    penult: Tensor
    """(B, D): input of the last linear layer."""
    logits: Tensor
    """(B, C)."""
    cls: list[Tensor] = field(default_factory=list)
    """(B, D) class token after each block; empty for networks without one."""


class Classifier(nn.Module, ABC):
    """A classifier of normalised images (B, 3, P, P) to logits (B, C)."""

    num_classes: int
    arch: str | None = None
    """What :func:`kdbench.tracks.vision.models.build` made it from."""
    kind: str | None = None
    """Name in :data:`kdbench.tracks.vision.models.KINDS` of a network that no architecture describes."""
    config: dict[str, Any] | None = None
    """Keyword arguments, of plain values, from which a network with a ``kind`` is made again."""

    @abstractmethod
    def taps(self, x: Tensor) -> Taps:
        """Logits together with the representations that lead to them."""

    @abstractmethod
    def head(self) -> nn.Linear:
        """The last linear layer, whose input is ``taps(x).penult``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.taps(x).logits
