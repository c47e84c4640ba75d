"""What ``train`` returns: a small data set that fresh networks learn from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.training.kinds import OfKind

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask


class Distilled(OfKind, ABC, noun="distilled set", modules=["kdbench.tracks.dataset_distillation.distilled"]):
    """A distilled data set."""

    @abstractmethod
    def floats(self, task: DDTask) -> Mapping[str, int]:
        """Numbers that have to be kept: ``data`` (images, perturbations) and ``labels`` beyond one class per image."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` reads."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, task: DDTask) -> Distilled:
        """Read what :meth:`save` wrote."""
