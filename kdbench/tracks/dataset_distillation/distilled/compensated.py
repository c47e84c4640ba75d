"""Images and shared perturbations whose sums are brought back to what a picture may have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.errors import ArtifactError
from kdbench.tracks.dataset_distillation.distilled.images import ImageSet

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

RANGE = "range.safetensors"


@dataclass
class Compensated(ImageSet):
    """An :class:`ImageSet` whose images are ``clamp(base + shared)``; the bounds of the task cost nothing."""

    kind: ClassVar[str] = "compensated"
    low: Tensor | None = None
    """(C, 1, 1): least value of a channel."""
    high: Tensor | None = None
    """(C, 1, 1): largest value of a channel."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """``low`` and ``high``. Raises ``ArtifactError`` for a set that was made without them."""
        if self.low is None or self.high is None:
            raise ArtifactError("a compensated set needs low and high: the values that a picture may have")
        return self.low, self.high

    def images(self) -> Tensor:
        low, high = self.bounds()
        return torch.maximum(torch.minimum(super().images(), high), low)

    def save(self, folder: Path) -> None:
        super().save(folder)
        low, high = self.bounds()
        save_file({"low": low.cpu().contiguous(), "high": high.cpu().contiguous()}, folder / RANGE)

    @classmethod
    def load(cls, folder: Path, task: DDTask) -> Compensated:
        plain, found = ImageSet.load(folder, task), load_file(folder / RANGE)
        low, high = found["low"].to(task.device), found["high"].to(task.device)
        return cls(plain.base, plain.labels, plain.labelling, plain.shared, plain.rows, low, high)
