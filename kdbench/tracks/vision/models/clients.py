"""``clients``: the networks of several clients, of any architectures, that are trained and judged side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.losses.logits import mean_probability_logits
from kdbench.tracks.vision.models.base import Classifier, Taps


class Clients(Classifier):
    """One network per client. Called as one network they are an ensemble; the track's metrics are means over them."""

    kind = "clients"

    def __init__(self, archs: Sequence[str], *, num_classes: int, size: int = 16) -> None:
        """``archs`` as :func:`kdbench.tracks.vision.models.build` takes them, one per client."""
        from kdbench.tracks.vision.models import build

        super().__init__()
        self.num_classes = num_classes
        self.config = {"archs": list(archs), "num_classes": num_classes, "size": size}
        self.members = nn.ModuleList(build(arch, num_classes, size) for arch in archs)

    def head(self) -> nn.Linear:
        raise TypeError("clients have a head each: use the members")

    def taps(self, x: Tensor) -> Taps:
        """``penult`` holds the members' features side by side, ``logits`` the log of their mean probabilities."""
        taps = [member.taps(x) for member in self.members]
        return Taps([], torch.cat([each.penult for each in taps], 1), self.ensemble([each.logits for each in taps]))

    @staticmethod
    def ensemble(logits: list[Tensor]) -> Tensor:
        return mean_probability_logits(logits)
